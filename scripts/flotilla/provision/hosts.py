"""The hosts themselves: instances of the fixed tiers, the Auto Scaling group, and the names of its
hosts.

A host that exists is left alone: it is not started (a fenced database must stay stopped), moved,
resized or replaced. Those are jobs of run-books that drain it first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from flotilla.errors import Refused
from flotilla.mysql.store import records
from flotilla.provision import hooks, network, templates
from flotilla.provision.change import Change, Stage
from flotilla.provision.world import World, tag
from flotilla.rules import placement
from flotilla.rules.placement import SCALED, STATEFUL, Place
from flotilla.settings import ROLES

PRESENT = ("pending", "running", "stopping", "stopped")
RUNNING_SECONDS = 300
# A profile or template made a moment ago is not known everywhere at once.
NOT_YET = (
    "InvalidParameterValue",
    "InvalidLaunchTemplateName.NotFoundException",
    "ValidationError",
)
Instance = Mapping[str, Any]


def stages(world: World, *, shrink: Sequence[str] = ()) -> list[Stage]:
    """Launch what is missing, let go what is too much, then give names to what Auto Scaling
    launched.

    ``shrink`` names the stateful roles that may lose hosts. Raises Refused where one would lose
    them unasked.
    """
    found = instances(world)
    fixed = [
        change
        for role in ROLES
        if role not in SCALED
        for change in _tier(world, role, found, allowed=role in shrink)
    ]
    scaled = [change for role in sorted(SCALED) for change in _group(world, role)]
    naming = [change for role in sorted(SCALED) for change in _naming(world, role, found)]
    holding = [
        change
        for role in sorted(SCALED)
        for change in hooks.changes(world, role, exists=_found_group(world, role) is not None)
    ]
    return [[*fixed, *scaled], [*naming, *holding]]


def instances(world: World, states: Sequence[str] = PRESENT) -> list[Instance]:
    """Every instance of the fleet in one of ``states`` (not gone or going), oldest first."""
    alive = [*world.mine(), {"Name": "instance-state-name", "Values": list(states)}]
    pages = world.ec2.get_paginator("describe_instances").paginate(Filters=alive)
    found = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
    return sorted(found, key=lambda instance: (_launched(instance), instance["InstanceId"]))


def await_running(world: World) -> list[Instance]:
    """The fleet's instances once none is pending; Unreachable after 5 minutes."""
    return world.wait(
        "every instance runs",
        lambda: (
            found
            if (found := instances(world)) and all(_state(i) != "pending" for i in found)
            else None
        ),
        seconds=RUNNING_SECONDS,
    )


def _launched(instance: Instance) -> datetime:
    launched: datetime = instance["LaunchTime"]
    return launched


def _state(instance: Instance) -> str:
    return str(instance["State"]["Name"])


def _of(role: str, found: Sequence[Instance]) -> list[Instance]:
    return [instance for instance in found if tag(instance, "Role") == role]


def _tier(world: World, role: str, found: Sequence[Instance], *, allowed: bool) -> list[Change]:
    tier, settings = getattr(world.settings.tiers, role), world.settings
    existing = {tag(instance, "Name"): instance for instance in _of(role, found)}
    plan = placement.difference(role, tier.count, settings.zones, existing)
    primary = _primary(world, role, existing) if plan.surplus and role in STATEFUL else None
    why_not = placement.why_not_shrink(role, plan.surplus, allowed=allowed, primary=primary)
    if why_not:
        raise Refused(
            f"fleet.tiers.{role}.count is {tier.count}, but {', '.join(sorted(existing))} exist",
            why=why_not,
            untouched="Nothing was changed",
            next=f"fab fleet.provision --shrink {role}"
            if not allowed
            else f"fab {role}.switchover",
        )
    launch = [
        Change("create", "instance", host.name, partial(_launch, world, host), f"in {host.zone}")
        for host in plan.launch
    ]
    ids = {name: existing[name]["InstanceId"] for name in plan.surplus}
    return launch + [
        Change("delete", "instance", name, partial(_terminate, world, instance), instance)
        for name, instance in ids.items()
    ]


def _primary(world: World, role: str, existing: Mapping[str, Instance]) -> str | None:
    """Name of the host that the cluster record says is primary."""
    record = records(world.settings, role).read()
    primary = record.instance_id if record else None
    return next((n for n, i in existing.items() if i["InstanceId"] == primary), None)


def _launch(world: World, host: Place) -> None:
    subnet = network.subnet(world, "public" if host.public else "private", host.zone)
    world.persist(
        lambda: world.ec2.run_instances(
            LaunchTemplate=templates.reference(world, host.role),
            SubnetId=world.id("subnet", subnet),
            MinCount=1,
            MaxCount=1,
            TagSpecifications=world.tagged("instance", host.name, Role=host.role),
        ),
        codes=NOT_YET,
    )


def _terminate(world: World, instance: str) -> None:
    world.ec2.terminate_instances(InstanceIds=[instance])


def _group(world: World, role: str) -> list[Change]:
    name, count = world.settings.name_of(role), getattr(world.settings.tiers, role).count
    found = _found_group(world, role)
    if found is None:
        act = partial(_create_group, world, role)
        return [Change("create", "Auto Scaling group", name, act, f"{count} hosts")]
    wanted = _shape(world, role)
    present = {
        "DesiredCapacity": found["DesiredCapacity"],
        "MinSize": found["MinSize"],
        "MaxSize": found["MaxSize"],
        "VPCZoneIdentifier": ",".join(sorted(found["VPCZoneIdentifier"].split(","))),
        "LaunchTemplate": {
            key: found["LaunchTemplate"][key] for key in ("LaunchTemplateName", "Version")
        },
    }
    wrong = [key for key, value in wanted.items() if present[key] != value]
    if not wrong:
        return []
    act = partial(_update_group, world, role)
    return [Change("change", "Auto Scaling group", name, act, ", ".join(wrong))]


def _found_group(world: World, role: str) -> dict[str, Any] | None:
    answer = world.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[world.settings.name_of(role)]
    )["AutoScalingGroups"]
    return next(iter(answer), None)


def _shape(world: World, role: str) -> dict[str, Any]:
    """What an Auto Scaling group should be. Twice the hosts as a ceiling: a roll-out by
    replacement runs old and new side by side. No floor: a host in Standby, out for its deploy,
    lowers the group's own number.
    """
    count = getattr(world.settings.tiers, role).count
    subnets = [network.subnet(world, "private", zone) for zone in world.settings.zones]
    return {
        "MinSize": 0,
        "MaxSize": 2 * count,
        "DesiredCapacity": count,
        "VPCZoneIdentifier": ",".join(sorted(world.ids.get(("subnet", s), "new") for s in subnets)),
        "LaunchTemplate": templates.reference(world, role),
    }


def _create_group(world: World, role: str) -> None:
    name = world.settings.name_of(role)
    tags = [t for t in world.tags(name, Role=role) if t["Key"] != "Name"]
    world.persist(
        lambda: world.client("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=name,
            Tags=[t | {"PropagateAtLaunch": True} for t in tags],
            HealthCheckType="EC2",
            **_shape(world, role),
        ),
        codes=NOT_YET,
    )


def _update_group(world: World, role: str) -> None:
    world.client("autoscaling").update_auto_scaling_group(
        AutoScalingGroupName=world.settings.name_of(role), **_shape(world, role)
    )


def _naming(world: World, role: str, found: Sequence[Instance]) -> list[Change]:
    count = getattr(world.settings.tiers, role).count
    hosts = _of(role, found)
    missing = max(count - len(hosts), 0)
    if not missing and not _names(role, hosts):
        return []
    detail = f"{missing + len(_names(role, hosts))} new hosts"
    return [Change("change", "host names", role, partial(_name, world, role), detail)]


def _name(world: World, role: str) -> None:
    """Wait until Auto Scaling has launched what it should, and name the hosts that have no name."""
    count = getattr(world.settings.tiers, role).count
    hosts = world.wait(
        f"Auto Scaling has launched {count} {role} hosts",
        lambda: found if len(found := _of(role, instances(world))) >= count else None,
        seconds=RUNNING_SECONDS,
    )
    for instance, name in _names(role, hosts).items():
        world.ec2.create_tags(Resources=[instance], Tags=[{"Key": "Name", "Value": name}])


def _names(role: str, hosts: Sequence[Instance]) -> dict[str, str]:
    named = {instance["InstanceId"]: tag(instance, "Name") for instance in hosts}
    return placement.names(role, named, list(named))

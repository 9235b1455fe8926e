"""Take a fleet away again: only what carries its tags or its exact names, and nothing else.

Buckets and secrets stay unless the data is to go too. They stay together: a restored backup carries
the database passwords of its time, and those are the ones in SSM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from flotilla.aws.errors import described
from flotilla.aws.session import session
from flotilla.errors import FlotillaError
from flotilla.provision import copies, hosts, identity, storage
from flotilla.provision.change import Change
from flotilla.provision.change import carry_out as act_on
from flotilla.provision.world import World, tag
from flotilla.provision.world import data as read_data
from flotilla.settings import ROLES

LOCKS = "locks"
Step = Callable[[World], list[Change]]

PAGE = 1000  # what S3 lists, and deletes, at once
GONE_SECONDS = 600  # a NAT gateway takes minutes to let go of its address
# What was just let go still counts as in use for a while.
IN_USE = ("DependencyViolation", "InvalidIPAddress.InUse", "AuthFailure", "DeleteConflict")


def plan(world: World, *, data: bool) -> list[Change]:
    """Everything that would go, in the order it would go. Reads only."""
    stages: list[list[Step]] = [*_stages(data=data), [lock_table]]
    with described(world.settings, "list what belongs to the fleet"):
        return [change for stage in stages for step in stage for change in step(world)]


def carry_out(world: World, *, data: bool) -> list[Change]:
    """Delete all of it but the table of locks, which holds our own; what was deleted."""
    done: list[Change] = []
    for stage in _stages(data=data):
        with described(world.settings, "delete what belongs to the fleet"):
            changes = [change for step in stage for change in step(world)]
            act_on([changes])
            done += changes
    return done


def finish(world: World, *, data: bool) -> list[Change]:
    """Delete the table of locks, and look again; what was deleted.

    Raises FlotillaError where something is still there afterwards.
    """
    with described(world.settings, "delete the table of locks"):
        last = lock_table(world)
        act_on([last])
    if left := [str(change) for change in plan(world, data=data)]:
        raise FlotillaError(f"still there: {'; '.join(left)}", next="fab fleet.destroy")
    return last


def kept(world: World) -> list[str]:
    """Names of the buckets that exist: the data that stays unless it is to go too."""
    return [name for _, name in _kept(world)]


def _kept(world: World) -> list[tuple[World, str]]:
    """The same, each with the region it is in."""
    settings = world.settings
    places = [
        (world, settings.name_of(bucket["name"])) for bucket in read_data("storage.yml")["buckets"]
    ]
    if there := copies.elsewhere(world):
        places.append((there, settings.name_of(copies.COPIES)))
    with described(settings, "list the buckets of the fleet"):
        return [(place, name) for place, name in places if storage.bucket_exists(place, name)]


def _stages(*, data: bool) -> list[list[Step]]:
    """What may go at the same time, in order."""
    stages: list[list[Step]] = [
        [_groups],
        [_instances],
        [_templates, _nat_gateways, _endpoints, _rules],
        [_addresses, _security_groups, _keys, _roles],
        [_internet_gateways, _subnets],
        [_route_tables],
        [_vpcs],
        [_tables],
    ]
    return [*stages, [_secrets, _bucket_data]] if data else stages


def _each(
    world: World,
    kind: str,
    resources: Iterable[Mapping[str, Any]],
    key: str,
    act: Callable[[Mapping[str, Any]], object],
) -> list[Change]:
    """A deletion for each resource of ours; its id (under ``key``) stands beside its name.

    The tags are read once more here: a filter that the API ignores must not cost another fleet.
    """
    return [
        Change("delete", kind, tag(one, "Name") or one[key], partial(_done, act, one), one[key])
        for one in resources
        if world.owns(one)
    ]


def _done(act: Callable[[Mapping[str, Any]], object], one: Mapping[str, Any]) -> None:
    act(one)


def _groups(world: World) -> list[Change]:
    names = [world.settings.name_of(role) for role in ROLES]
    return _each(
        world,
        "Auto Scaling group",
        _found_groups(world, names),
        "AutoScalingGroupName",
        partial(_delete_group, world),
    )


def _found_groups(world: World, names: Sequence[str]) -> list[dict[str, Any]]:
    scaling = world.client("autoscaling")
    answer = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=list(names))
    return list(answer["AutoScalingGroups"])


def _delete_group(world: World, group: Mapping[str, Any]) -> None:
    """The group is gone when its last instance is terminated."""
    name = group["AutoScalingGroupName"]
    world.client("autoscaling").delete_auto_scaling_group(
        AutoScalingGroupName=name, ForceDelete=True
    )
    world.wait(
        f"Auto Scaling group {name} is gone",
        lambda: not _found_groups(world, [name]),
        seconds=GONE_SECONDS,
    )


def _instances(world: World) -> list[Change]:
    """Also those that somebody else is terminating: their network can go only after them."""
    found = hosts.instances(world, (*hosts.PRESENT, "shutting-down"))
    return _each(world, "instance", found, "InstanceId", partial(_terminate, world))


def _terminate(world: World, instance: Mapping[str, Any]) -> None:
    instance_id = instance["InstanceId"]
    world.ec2.terminate_instances(InstanceIds=[instance_id])
    world.wait(
        f"instance {instance_id} is terminated",
        lambda: _state(world, instance_id) in {"terminated", ""},
        seconds=GONE_SECONDS,
    )


def _state(world: World, instance_id: str) -> str:
    """ "" when EC2 no longer shows it."""
    answer = world.ec2.describe_instances(
        Filters=[{"Name": "instance-id", "Values": [instance_id]}]
    )["Reservations"]
    return str(answer[0]["Instances"][0]["State"]["Name"]) if answer else ""


def _templates(world: World) -> list[Change]:
    found = world.ec2.describe_launch_templates(Filters=world.mine())["LaunchTemplates"]
    return _each(
        world,
        "launch template",
        found,
        "LaunchTemplateId",
        lambda one: world.ec2.delete_launch_template(LaunchTemplateId=one["LaunchTemplateId"]),
    )


def _nat_gateways(world: World) -> list[Change]:
    states = {"Name": "state", "Values": ["pending", "available", "deleting", "failed"]}
    found = world.ec2.describe_nat_gateways(Filters=[*world.mine(), states])["NatGateways"]
    return _each(world, "NAT gateway", found, "NatGatewayId", partial(_delete_nat, world))


def _delete_nat(world: World, nat: Mapping[str, Any]) -> None:
    nat_id = nat["NatGatewayId"]
    world.ec2.delete_nat_gateway(NatGatewayId=nat_id)

    def is_gone() -> bool:
        found = world.ec2.describe_nat_gateways(NatGatewayIds=[nat_id])["NatGateways"]
        return all(one["State"] == "deleted" for one in found)

    world.wait(f"NAT gateway {nat_id} is deleted", is_gone, seconds=GONE_SECONDS)


def _endpoints(world: World) -> list[Change]:
    states = {"Name": "vpc-endpoint-state", "Values": ["pending", "available"]}
    found = world.ec2.describe_vpc_endpoints(Filters=[*world.mine(), states])["VpcEndpoints"]
    return _each(
        world,
        "gateway endpoint",
        found,
        "VpcEndpointId",
        lambda one: world.ec2.delete_vpc_endpoints(VpcEndpointIds=[one["VpcEndpointId"]]),
    )


def _security_groups(world: World) -> list[Change]:
    return _each(
        world,
        "security group",
        world.ec2.describe_security_groups(Filters=world.mine())["SecurityGroups"],
        "GroupId",
        lambda one: world.persist(
            lambda: world.ec2.delete_security_group(GroupId=one["GroupId"]), codes=IN_USE
        ),
    )


def _rules(world: World) -> list[Change]:
    """The rules of every group first: groups that name each other can be deleted in no order."""
    groups = world.ec2.describe_security_groups(Filters=world.mine())["SecurityGroups"]
    return [
        Change("delete", "rules of", one["GroupName"], partial(_revoke, world, one))
        for one in groups
        if one["IpPermissions"] or one["IpPermissionsEgress"]
    ]


def _revoke(world: World, group: Mapping[str, Any]) -> None:
    for direction, key in (("ingress", "IpPermissions"), ("egress", "IpPermissionsEgress")):
        if group[key]:
            call = getattr(world.ec2, f"revoke_security_group_{direction}")
            call(GroupId=group["GroupId"], IpPermissions=group[key])


def _addresses(world: World) -> list[Change]:
    return _each(
        world,
        "Elastic IP",
        world.ec2.describe_addresses(Filters=world.mine())["Addresses"],
        "AllocationId",
        lambda one: world.persist(
            lambda: world.ec2.release_address(AllocationId=one["AllocationId"]), codes=IN_USE
        ),
    )


def _keys(world: World) -> list[Change]:
    return _each(
        world,
        "key pair",
        world.ec2.describe_key_pairs(Filters=world.mine())["KeyPairs"],
        "KeyPairId",
        lambda one: world.ec2.delete_key_pair(KeyName=one["KeyName"]),
    )


def _roles(world: World) -> list[Change]:
    iam, changes = world.client("iam"), []
    for name in [world.settings.name_of(role) for role in (*identity.HOLDERS, identity.COPY)]:
        role = identity.get(partial(iam.get_role, RoleName=name))
        profile = identity.get(partial(iam.get_instance_profile, InstanceProfileName=name))
        if role or profile:
            held = profile["InstanceProfile"] if profile else None
            act = partial(_delete_role, world, name, held, exists=bool(role))
            changes.append(Change("delete", "IAM role", name, act, "policy and profile with it"))
    return changes


def _delete_role(
    world: World, name: str, profile: Mapping[str, Any] | None, *, exists: bool
) -> None:
    iam = world.client("iam")
    if profile:
        for held in profile["Roles"]:
            iam.remove_role_from_instance_profile(
                InstanceProfileName=name, RoleName=held["RoleName"]
            )
        iam.delete_instance_profile(InstanceProfileName=name)
    if exists:
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=name, PolicyName=policy)
        iam.delete_role(RoleName=name)


def _internet_gateways(world: World) -> list[Change]:
    return _each(
        world,
        "internet gateway",
        world.ec2.describe_internet_gateways(Filters=world.mine())["InternetGateways"],
        "InternetGatewayId",
        partial(_delete_gateway, world),
    )


def _delete_gateway(world: World, gateway: Mapping[str, Any]) -> None:
    gateway_id = gateway["InternetGatewayId"]
    for attachment in gateway["Attachments"]:
        world.persist(
            partial(
                world.ec2.detach_internet_gateway,
                InternetGatewayId=gateway_id,
                VpcId=attachment["VpcId"],
            ),
            codes=IN_USE,
        )
    world.ec2.delete_internet_gateway(InternetGatewayId=gateway_id)


def _subnets(world: World) -> list[Change]:
    return _each(
        world,
        "subnet",
        world.ec2.describe_subnets(Filters=world.mine())["Subnets"],
        "SubnetId",
        lambda one: world.persist(
            lambda: world.ec2.delete_subnet(SubnetId=one["SubnetId"]), codes=IN_USE
        ),
    )


def _route_tables(world: World) -> list[Change]:
    return _each(
        world,
        "route table",
        world.ec2.describe_route_tables(Filters=world.mine())["RouteTables"],
        "RouteTableId",
        partial(_delete_table, world),
    )


def _delete_table(world: World, table: Mapping[str, Any]) -> None:
    for association in table["Associations"]:
        world.ec2.disassociate_route_table(AssociationId=association["RouteTableAssociationId"])
    world.ec2.delete_route_table(RouteTableId=table["RouteTableId"])


def _vpcs(world: World) -> list[Change]:
    return _each(
        world,
        "VPC",
        world.ec2.describe_vpcs(Filters=world.mine())["Vpcs"],
        "VpcId",
        lambda one: world.ec2.delete_vpc(VpcId=one["VpcId"]),
    )


def _tables(world: World) -> list[Change]:
    names = [table["name"] for table in read_data("storage.yml")["tables"]]
    return [change for name in names if name != LOCKS for change in _table(world, name)]


def lock_table(world: World) -> list[Change]:
    """The table of locks, when there is one."""
    return _table(world, LOCKS)


def _table(world: World, suffix: str) -> list[Change]:
    name = world.settings.name_of(suffix)
    if not storage.table_exists(world, name):
        return []
    return [Change("delete", "table", name, partial(_delete_dynamodb, world, name))]


def _delete_dynamodb(world: World, name: str) -> None:
    world.client("dynamodb").delete_table(TableName=name)
    world.wait(
        f"table {name} is deleted",
        lambda: not storage.table_exists(world, name),
        seconds=storage.TABLE_SECONDS,
    )


def _secrets(world: World) -> list[Change]:
    there = copies.elsewhere(world)
    return [
        Change("delete", "secret", name, partial(_forget, ssm, name), region)
        for place, region in ((world, ""), (there, there.settings.region if there else ""))
        if place
        for ssm in [place.client("ssm")]
        for name in sorted(storage.parameters(place))
    ]


def _forget(ssm: Any, name: str) -> None:
    ssm.delete_parameter(Name=name)


def _bucket_data(world: World) -> list[Change]:
    return [
        Change(
            "delete", "bucket", name, partial(delete_bucket, place, name), "and every version in it"
        )
        for place, name in _kept(world)
    ]


def delete_bucket(world: World, name: str) -> None:
    """A bucket with every version of everything in it; FlotillaError when S3 keeps some."""
    aws = world.settings.aws
    bucket = session(world.settings).resource("s3", endpoint_url=aws.endpoint_url).Bucket(name)
    # Copies of another bucket's objects, and parts of hosts that have just ended, come in late.
    world.persist(partial(_empty_and_delete, bucket), codes=["BucketNotEmpty"])


def _empty_and_delete(bucket: Any) -> None:
    # The first page until there is none: a marker of what was deleted is no good to go on from.
    # Backups are locked for two weeks. Whoever said to take the data too means those as well.
    while answers := bucket.object_versions.limit(PAGE).delete(BypassGovernanceRetention=True):
        if kept := [error for answer in answers for error in answer.get("Errors", ())]:
            told = kept[0]
            raise FlotillaError(
                f"S3 keeps {len(kept)} objects of {bucket.name}: {told['Key']}: {told['Code']}",
                why="locked for longer, or without the right s3:BypassGovernanceRetention",
                next="fab fleet.destroy --data, when it may go",
            )
    for upload in bucket.multipart_uploads.all():
        upload.abort()
    bucket.delete()

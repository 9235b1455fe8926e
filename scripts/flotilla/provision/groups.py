"""Security groups: exactly the rules of the reachability table, in both directions, and nothing
beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from flotilla.provision.change import Change, Stage
from flotilla.provision.world import World, by_name, data
from flotilla.rules import reachability
from flotilla.rules.reachability import ANYWHERE, Group, Rule
from flotilla.settings import ROLES

DIRECTIONS = ("ingress", "egress")
Found = dict[Rule, str]  # rule to its id at AWS


def desired(world: World) -> dict[str, Group]:
    """The security group of every role, from the table and the networks fleet.yml names."""
    settings = world.settings
    outside = {
        "operator": settings.ssh.allow_from,
        "clients": settings.lb.allow_from,
        "internet": (ANYWHERE,),
    }
    table = reachability.rows(data("reachability.yml"))
    return reachability.groups(table, roles=ROLES, outside=outside)


def stages(world: World) -> list[Stage]:
    """Make the groups first, then their rules: a rule may name any group."""
    found = by_name(world.ec2.describe_security_groups(Filters=world.mine())["SecurityGroups"])
    for name, group in found.items():
        world.ids["security group", name] = group["GroupId"]
    wanted = desired(world)
    create = [
        Change("create", "security group", name, partial(_make, world, role, name))
        for role in wanted
        if (name := world.settings.name_of(role)) not in found
    ]
    rules = [
        change for role, group in wanted.items() for change in _differences(world, role, group)
    ]
    return [create, [*rules, *_close_default(world)]]


def _make(world: World, role: str, name: str) -> None:
    world.ids["security group", name] = world.ec2.create_security_group(
        GroupName=name,
        Description=f"{role} hosts, by the reachability table",
        VpcId=world.id("vpc", world.settings.prefix),
        TagSpecifications=world.tagged("security-group", name, Role=role),
    )["GroupId"]


def _differences(world: World, role: str, wanted: Group) -> list[Change]:
    name = world.settings.name_of(role)
    group = world.ids.get(("security group", name))
    changes = []
    for direction in DIRECTIONS:
        want: frozenset[Rule] = getattr(wanted, direction)
        have = _found(world, group, direction) if group else {}
        if have.keys() != want:
            detail = f"{direction} +{len(want - have.keys())} -{len(have.keys() - want)} rules"
            act = partial(_converge, world, name, direction, want)
            changes.append(Change("change", "security group", name, act, detail))
    return changes


def _found(world: World, group: str, direction: str) -> Found:
    names = {world.ids.get(("security group", world.settings.name_of(r))): r for r in ROLES}
    pages = world.ec2.get_paginator("describe_security_group_rules").paginate(
        Filters=[{"Name": "group-id", "Values": [group]}]
    )
    return {
        _rule(rule, names): rule["SecurityGroupRuleId"]
        for page in pages
        for rule in page["SecurityGroupRules"]
        if rule["IsEgress"] == (direction == "egress")
    }


def _rule(found: Mapping[str, Any], names: Mapping[str | None, str]) -> Rule:
    """A rule as the table would have it. What the table never makes (a range, IPv6) keeps a peer
    that no row has, so that it is taken away.
    """
    referenced = found.get("ReferencedGroupInfo", {}).get("GroupId")
    peer = names.get(referenced, referenced) or found.get("CidrIpv4") or "not IPv4"
    if found["IpProtocol"] not in reachability.WITH_PORTS:
        return Rule(found["IpProtocol"], None, peer)
    if found["FromPort"] != found["ToPort"]:
        peer = f"{peer} up to port {found['ToPort']}"
    return Rule(found["IpProtocol"], found["FromPort"], peer)


def _converge(world: World, name: str, direction: str, want: frozenset[Rule]) -> None:
    """Open what is missing before closing what is too much, so that a renamed reason cuts nobody
    off.
    """
    group = world.id("security group", name)
    have = _found(world, group, direction)
    if missing := want - have.keys():
        permissions = [_permission(world, rule) for rule in sorted(missing)]
        getattr(world.ec2, f"authorize_security_group_{direction}")(
            GroupId=group, IpPermissions=permissions
        )
    _revoke(world, group, direction, (have[rule] for rule in have.keys() - want))


def _permission(world: World, rule: Rule) -> dict[str, Any]:
    # For a protocol without ports EC2 wants -1 for both, or refuses the call.
    port = -1 if rule.port is None else rule.port
    opening: dict[str, Any] = {"IpProtocol": rule.protocol, "FromPort": port, "ToPort": port}
    if rule.peer in ROLES:
        peer = world.id("security group", world.settings.name_of(rule.peer))
        return opening | {"UserIdGroupPairs": [{"GroupId": peer, "Description": rule.why}]}
    return opening | {"IpRanges": [{"CidrIp": rule.peer, "Description": rule.why}]}


def _revoke(world: World, group: str, direction: str, rules: Iterable[str]) -> None:
    if ids := sorted(rules):
        getattr(world.ec2, f"revoke_security_group_{direction}")(
            GroupId=group, SecurityGroupRuleIds=ids
        )


def _close_default(world: World) -> list[Change]:
    """The VPC's default group must allow nothing: an instance launched without a group would land
    in it.
    """
    change = Change(
        "change",
        "security group",
        f"default of {world.settings.prefix}",
        partial(_empty_default, world),
        "closed",
    )
    vpc = world.ids.get(("vpc", world.settings.prefix))
    if vpc is None:
        return [change]
    group = _default(world, vpc)
    return [change] if any(_found(world, group, direction) for direction in DIRECTIONS) else []


def _default(world: World, vpc: str) -> str:
    filters = [
        {"Name": "vpc-id", "Values": [vpc]},
        {"Name": "group-name", "Values": ["default"]},
    ]
    found = world.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    return str(found[0]["GroupId"])


def _empty_default(world: World) -> None:
    group = _default(world, world.id("vpc", world.settings.prefix))
    for direction in DIRECTIONS:
        _revoke(world, group, direction, _found(world, group, direction).values())

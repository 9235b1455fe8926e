"""From the API's state to what decides which packets an instance may send and receive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lab.ports import AclEntry, Rule, View

_GONE = ("terminated",)
# moto stores network ACL protocols by number, as the API does.
_PROTOCOLS = {"6": "tcp", "17": "udp", "1": "icmp"}


def live_instances(ec2: Any) -> list[Any]:
    """moto's instances that still have an address.

    moto lets a subnet be deleted under an instance that is shutting down, where EC2 would refuse.
    """
    subnets = {subnet_id for zone in ec2.subnets.values() for subnet_id in zone}
    return [
        i for i in ec2.all_instances() if i.state not in _GONE and i.nics and i.subnet_id in subnets
    ]


def security_views(ec2: Any) -> list[View]:
    """The view of every instance that has an address."""
    members = _members(ec2)
    return [_view(ec2, instance, members) for instance in live_instances(ec2)]


def _view(ec2: Any, instance: Any, members: dict[str, set[str]]) -> View:
    groups = sorted(instance.nics[0].group_set, key=lambda group: str(group.id))
    subnet = ec2.get_subnet(instance.subnet_id)
    ingress, egress = _acl(ec2, subnet.id)
    return View(
        instance_id=instance.id,
        address=instance.private_ip,
        subnet_cidr=subnet.cidr_block,
        ingress=_rules((rule for group in groups for rule in group.ingress_rules), members),
        egress=_rules((rule for group in groups for rule in group.egress_rules), members),
        acl_ingress=ingress,
        acl_egress=egress,
    )


def _members(ec2: Any) -> dict[str, set[str]]:
    """Addresses by security group id."""
    members: dict[str, set[str]] = {}
    for instance in live_instances(ec2):
        for nic in instance.nics.values():
            for group in nic.group_set:
                members.setdefault(group.id, set()).add(f"{nic.private_ip_address}/32")
    return members


def _rules(rules: Iterable[Any], members: dict[str, set[str]]) -> tuple[Rule, ...]:
    found = set()
    for rule in rules:
        peers: Iterable[str] = ()
        if rule.source_group:
            peers = members.get(rule.source_group.get("GroupId", ""), set())
        elif rule.cidr_ipv4:
            peers = (rule.cidr_ipv4,)
        ports = (
            (rule.from_port, rule.to_port)
            if rule.ip_protocol in ("tcp", "udp", "icmp")
            else (None, None)
        )
        if rule.ip_protocol == "icmp" or ports == (-1, -1):
            ports = (None, None)
        found.add(Rule(rule.ip_protocol or "-1", ports[0], ports[1], tuple(sorted(peers))))
    return tuple(sorted(found, key=repr))


def _acl(ec2: Any, subnet_id: str) -> tuple[tuple[AclEntry, ...], tuple[AclEntry, ...]]:
    for acl in ec2.network_acls.values():
        if any(association.subnet_id == subnet_id for association in acl.associations):
            return _entries(acl, egress=False), _entries(acl, egress=True)
    return (), ()


def _entries(acl: Any, *, egress: bool) -> tuple[AclEntry, ...]:
    entries = [e for e in acl.network_acl_entries if _truth(e.egress) == egress and e.cidr_block]
    entries.sort(key=lambda entry: int(entry.rule_number))
    # Under every list stands EC2's own last line, which moto gives only to the default list.
    last = AclEntry(32767, "deny", "-1", None, None, "0.0.0.0/0")
    return tuple(
        AclEntry(
            number=int(entry.rule_number),
            action="allow" if entry.rule_action == "allow" else "deny",
            protocol=_PROTOCOLS.get(str(entry.protocol), str(entry.protocol)),
            from_port=_port(entry.port_range_from),
            to_port=_port(entry.port_range_to),
            cidr=entry.cidr_block,
        )
        for entry in entries
    ) + ((last,) if not entries else ())


def _truth(value: Any) -> bool:
    return str(value).lower() == "true"


def _port(value: Any) -> int | None:
    return None if value in (None, "", "-1", -1) else int(value)

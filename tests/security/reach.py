"""Who can reach whom: what the table permits against what was seen, in both directions.

Decides only. ``wire.py`` does the seeing on hosts, ``tests/lab/test_security_reach.py`` brings the
two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from security.wire import ICMP, TCP, UDP

from flotilla.rules.reachability import Group, Rule

# Nobody has it (RFC 5737), so whatever leaves for it leaves for anywhere.
NOBODY = "198.51.100.7"
# In no row: what attackers ask first, what our services listen on behind the loopback, and what
# a careless rule would open.
OTHERS = (21, 23, 25, 53, 111, 123, 139, 445, 2049, 3307, 4566, 5000, 5432, 8000, 8080, 9100, 33060)
OTHERS_UDP = (53, 69, 111, 123, 161, 514, 3306, 8125)
_NAMES = {"tcp": TCP, "udp": UDP, "icmp": ICMP}


class Host(NamedTuple):
    """A host of the fleet; ``public`` is "" where it has no address of its own outside."""

    name: str
    role: str
    address: str
    public: str = ""


class Flow(NamedTuple):
    """``source`` reaches ``target``, both by name. ``port`` is None without ports."""

    source: str
    target: str
    protocol: int
    port: int | None


def number(protocol: str) -> int:
    """The IP protocol of a rule."""
    return _NAMES.get(protocol) or int(protocol)


def tcp_ports(groups: Mapping[str, Group], listening: Iterable[int] = ()) -> list[int]:
    """Every port of the table, every port that a host listens on, and others."""
    rules = [rule for group in groups.values() for rule in group.ingress | group.egress]
    return sorted({r.port for r in rules if r.protocol == "tcp" and r.port} | {*listening, *OTHERS})


def spoken(groups: Mapping[str, Group]) -> list[tuple[int, int | None]]:
    """Everything but TCP that is tried: (protocol, port), the table's and others."""
    rules = [rule for group in groups.values() for rule in group.ingress | group.egress]
    found = {(number(rule.protocol), rule.port) for rule in rules if rule.protocol != "tcp"}
    # GRE, ESP and VRRP carry whole networks or take addresses.
    found |= {(UDP, port) for port in OTHERS_UDP} | {(one, None) for one in (ICMP, 47, 50, 112)}
    return sorted(found, key=str)


def permitted(groups: Mapping[str, Group], hosts: Sequence[Host]) -> set[Flow]:
    """What goes through between hosts: what leaves the one and enters the other."""
    return {
        Flow(source.name, target.name, protocol, port)
        for source in hosts
        for target in hosts
        if source != target
        for protocol, port in _openings(groups[source.role].egress, target)
        & _openings(groups[target.role].ingress, source)
    }


def admitted(group: Group, address: str) -> set[tuple[int, int | None]]:
    """What a host of this group takes from an address that is no host's."""
    return _openings(group.ingress, Host("", "", address))


def released(group: Group, address: str = NOBODY) -> set[tuple[int, int | None]]:
    """What leaves a host of this group for an address that is no host's."""
    return _openings(group.egress, Host("", "", address))


def _openings(rules: Iterable[Rule], peer: Host) -> set[tuple[int, int | None]]:
    return {(number(rule.protocol), rule.port) for rule in rules if _is_for(rule, peer)}


def _is_for(rule: Rule, peer: Host) -> bool:
    if not re.fullmatch(r"[\d./]+", rule.peer):
        return rule.peer == peer.role
    return IPv4Address(peer.address) in IPv4Network(rule.peer)


def seen(hosts: Sequence[Host], answers: Mapping[str, Mapping[str, Any]]) -> set[Flow]:
    """What every host's answer (``wire.main``) says of the ways between them.

    Raises KeyError for a host that did not answer: silence is no proof.
    """
    names = {host.address: host.name for host in hosts}
    dialled = {
        Flow(host.name, names[address], TCP, port)
        for host in hosts
        for address, ports in answers[host.name]["through"].items()
        if address in names
        for port in ports
    }
    heard = {
        Flow(names[source], host.name, protocol, port)
        for host in hosts
        for source, protocol, port in answers[host.name]["heard"]
        if source in names
    }
    return dialled | heard


def differences(wanted: Iterable[Any], found: Iterable[Any]) -> list[str]:
    """One sentence for each thing that is not as the table says; none where all is."""
    wanted, found = set(wanted), set(found)
    more = [f"open, and no row of the table says so: {_told(one)}" for one in found - wanted]
    less = [f"in the table, and closed: {_told(one)}" for one in wanted - found]
    return sorted(more) + sorted(less)


def _told(one: Any) -> str:
    if isinstance(one, Flow):
        return f"{one.source} -> {one.target} {_what(one.protocol, one.port)}"
    if isinstance(one, tuple):
        *where, protocol, port = one
        return " ".join([*where, _what(protocol, port)])
    return str(one)


def _what(protocol: int, port: int | None) -> str:
    name = next((n for n, known in _NAMES.items() if known == protocol), f"protocol {protocol}")
    return name if port is None else f"{name} {port}"


def declared(
    found: Iterable[Mapping[str, Any]], roles: Mapping[str, str]
) -> dict[str, dict[str, set[tuple[str, str, int | None, int | None]]]]:
    """Security groups as EC2 describes them, by role: direction to (protocol, peer, first port,
    last port). ``roles`` maps a group's id to its role.
    """
    return {
        roles[group["GroupId"]]: {
            "ingress": _listed(group["IpPermissions"], roles),
            "egress": _listed(group["IpPermissionsEgress"], roles),
        }
        for group in found
    }


def _listed(
    permissions: Iterable[Mapping[str, Any]], roles: Mapping[str, str]
) -> set[tuple[str, str, int | None, int | None]]:
    listed = set()
    for one in permissions:
        has_ports = one["IpProtocol"] in ("tcp", "udp", "icmp")
        ports = (one.get("FromPort"), one.get("ToPort")) if has_ports else (None, None)
        peers = [roles.get(pair["GroupId"], pair["GroupId"]) for pair in one["UserIdGroupPairs"]]
        peers += [network["CidrIp"] for network in one["IpRanges"]]
        peers += [network["CidrIpv6"] for network in one.get("Ipv6Ranges", ())]
        peers += [prefix["PrefixListId"] for prefix in one.get("PrefixListIds", ())]
        listed |= {(one["IpProtocol"], peer, *ports) for peer in peers}
    return listed


def wished(groups: Mapping[str, Group]) -> dict[str, dict[str, set[Any]]]:
    """The table in the form of ``declared``."""
    return {
        role: {
            direction: {
                (rule.protocol, rule.peer, rule.port, rule.port)
                for rule in getattr(group, direction)
            }
            for direction in ("ingress", "egress")
        }
        for role, group in groups.items()
    }


def bare(listing: str) -> str:
    """What ``nft -s list table`` says, without the accounts: their numbers are a host's own."""
    return re.sub(r"\n\s*set metadata_users \{.*?\n\t\}\n", "\n", listing, flags=re.DOTALL)

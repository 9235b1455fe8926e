"""Which packets a host loses: pure, from the faults in force to one nftables table a host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lab.layout import OPERATOR_NETWORK, SERVICE_ADDRESSES

TABLE = "lab_fault"
DIRECTIONS = ("both", "in", "out")

# Things besides hosts that a host can be cut from.
PLACES: Mapping[str, tuple[str, ...]] = {
    "api": SERVICE_ADDRESSES,
    "operator": (str(OPERATOR_NETWORK),),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A host as far as the network is concerned."""

    instance_id: str
    address: str
    zone: str


@dataclass(frozen=True, slots=True)
class Cut:
    """One host loses its packets to and from some others, or from everybody.

    `peers` are instance ids and names of `PLACES`; None means all.
    """

    instance_id: str
    peers: tuple[str, ...] | None
    direction: Literal["both", "in", "out"] = "both"


@dataclass(frozen=True, slots=True)
class ZoneCut:
    """Every host of a zone, also one launched later, reaches nothing but its own zone."""

    zone: str


def tables(faults: Iterable[Cut | ZoneCut], nodes: Iterable[Node]) -> dict[str, str]:
    """The nftables text for every host, by instance id.

    Loading them leaves exactly the faults given here in force, whatever was in force before.
    """
    faults, nodes = list(faults), list(nodes)
    return {node.instance_id: _table(node, faults, nodes) for node in nodes}


def _table(node: Node, faults: list[Cut | ZoneCut], nodes: list[Node]) -> str:
    rules: dict[str, set[str]] = {"in": set(), "out": set()}
    for fault in faults:
        for side, rule in _rules(node, fault, nodes):
            rules[side].add(rule)
    # Adding first makes the deletion valid when there is no table yet.
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}"]
    if any(rules.values()):
        lines += [
            f"table inet {TABLE} {{",
            # Before the security groups and before connection tracking takes note: established
            # connections are cut too, and neither side is told.
            *_chain("in", "input", 'iif "lo" accept', rules["in"]),
            *_chain("out", "output", 'oif "lo" accept', rules["out"]),
            "}",
        ]
    return "\n".join(lines) + "\n"


def _rules(node: Node, fault: Cut | ZoneCut, nodes: list[Node]) -> Iterable[tuple[str, str]]:
    if isinstance(fault, ZoneCut):
        if fault.zone != node.zone:
            return []
        near = ", ".join(sorted(other.address for other in nodes if other.zone == node.zone))
        return [
            ("in", f"ip saddr != {{ {near} }} drop"),
            ("out", f"ip daddr != {{ {near} }} drop"),
        ]
    if fault.instance_id != node.instance_id:
        return []
    sides = ("in", "out") if fault.direction == "both" else (fault.direction,)
    if fault.peers is None:
        return [(side, "drop") for side in sides]
    known = {other.instance_id: (other.address,) for other in nodes}
    peers = [address for peer in fault.peers for address in PLACES.get(peer, known.get(peer, ()))]
    if not peers:  # everybody it was cut from is gone
        return []
    names = ", ".join(sorted(set(peers)))
    address = {"in": "saddr", "out": "daddr"}
    return [(side, f"ip {address[side]} {{ {names} }} drop") for side in sides]


def _chain(name: str, hook: str, first: str, rules: set[str]) -> list[str]:
    header = f"type filter hook {hook} priority raw; policy accept;"
    return [
        f"  chain {name} {{",
        *(f"    {rule}" for rule in (header, first, *sorted(rules))),
        "  }",
    ]

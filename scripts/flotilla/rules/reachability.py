"""Turn the reachability table into the exact rules of every security group.

Nothing here talks to AWS. Invariant: between two roles every opening exists twice, as egress of
the one and as ingress of the other, so that neither side can be open towards a peer that does not
expect it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ANYWHERE = "0.0.0.0/0"
WITH_PORTS = frozenset({"tcp", "udp"})
KEYS = frozenset({"from", "to", "protocol", "ports", "why"})


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """One opening of a security group. Two rules are the same whatever their descriptions say."""

    protocol: str  # "tcp", "udp", or a protocol number such as "112"
    port: int | None  # None for a protocol without ports
    peer: str  # a role, or an IPv4 CIDR
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """Everything one role's security group allows; what is not in it is closed."""

    ingress: frozenset[Rule]
    egress: frozenset[Rule]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: ``source`` may reach ``target`` on ``ports`` (none: a protocol without
    ports).
    """

    source: str
    target: str
    protocol: str
    ports: tuple[int, ...]
    why: str


def rows(table: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Read the table (one mapping a row, keys as in reachability.yml); ``ValueError`` names the
    first bad row.
    """
    return [_row(entry) for entry in table]


def groups(
    table: Sequence[Row], *, roles: Sequence[str], outside: Mapping[str, Sequence[str]]
) -> dict[str, Group]:
    """The security group of every role in ``roles``.

    ``outside`` maps the names in the table that are not roles to their CIDRs. ``ValueError`` for a
    name in the table that is neither: a misspelt role would silently open nothing.
    """
    openings: dict[str, tuple[set[Rule], set[Rule]]] = {role: (set(), set()) for role in roles}
    strangers = {row.source for row in table} | {row.target for row in table}
    strangers -= {*roles, *outside, "fleet"}
    if strangers:
        raise ValueError(f"no such peer: {', '.join(sorted(strangers))}")
    for row in table:
        for source, target in _pairs(row, roles):
            for port in row.ports or (None,):
                if target in openings:
                    openings[target][0].update(_rules(row, port, outside.get(source, (source,))))
                if source in openings:
                    openings[source][1].update(_rules(row, port, outside.get(target, (target,))))
    return {
        role: Group(frozenset(ingress), frozenset(egress))
        for role, (ingress, egress) in openings.items()
    }


def _rules(row: Row, port: int | None, peers: Iterable[str]) -> set[Rule]:
    return {Rule(row.protocol, port, peer, row.why) for peer in peers}


def _pairs(row: Row, roles: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Every (source, target) a row stands for. ``fleet`` to or from a role never means that role
    itself: a host that may reach its own kind says so in a row of its own.
    """
    sources = roles if row.source == "fleet" else [row.source]
    targets = roles if row.target == "fleet" else [row.target]
    expanded = "fleet" in (row.source, row.target)
    for source in sources:
        for target in targets:
            if not (expanded and source == target):
                yield source, target


def _row(entry: Mapping[str, Any]) -> Row:
    unknown = sorted(set(entry) - KEYS)
    protocol, ports = str(entry.get("protocol", "tcp")), tuple(entry.get("ports", ()))
    if unknown or not entry.get("from") or not entry.get("to") or not entry.get("why"):
        raise ValueError(
            f"row {dict(entry)}: needs from, to and why, and knows only {sorted(KEYS)}"
        )
    if (protocol in WITH_PORTS) != bool(ports):
        raise ValueError(
            f"row {dict(entry)}: {protocol} {'needs' if not ports else 'has no'} ports"
        )
    if any(not isinstance(port, int) or not 0 < port < 65536 for port in ports):
        raise ValueError(f"row {dict(entry)}: ports are numbers from 1 to 65535")
    return Row(entry["from"], entry["to"], protocol, ports, entry["why"])

"""Rule on work that takes one database host at a time away: which hosts need it, in which order.

Invariants: the primary comes last, after its role was moved to a host that is done; no host is
taken away unless another replica acknowledges meanwhile, so that writes never wait; nothing begins
on a cluster that is not whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flotilla.rules.mysql import Refusal, Repair, follower_objection
from flotilla.rules.mysql_topology import Topology
from flotilla.rules.packages import Upgrade


@dataclass(frozen=True, slots=True)
class Need:
    """What one host needs: reasons, as sentences, and the upgrades among them."""

    name: str
    reasons: tuple[str, ...]
    upgrades: tuple[Upgrade, ...] = ()


@dataclass(frozen=True, slots=True)
class Rolling:
    """Replicas in this order, then the primary, if it is to be done: it hands its role over."""

    replicas: tuple[str, ...]
    primary: str | None


def needs(
    name: str, planned: Sequence[Upgrade], newer_files: Sequence[str], *, anyway: bool = False
) -> Need | None:
    """What a host needs, None for nothing. ``newer_files`` changed after its server started."""
    reasons = [str(one) for one in planned]
    reasons += [f"{path} changed after the server was started" for path in newer_files]
    if anyway and not reasons:
        reasons.append("a restart was asked for")
    return Need(name, tuple(reasons), tuple(planned)) if reasons else None


def why_not_patch(needed: Iterable[Need]) -> Refusal | None:
    """Why these upgrades are not for a rolling restart, or None."""
    series = sorted(
        {
            str(one)
            for need in needed
            for one in need.upgrades
            if one.package.startswith("mysql-") and one.changes_series
        }
    )
    if not series:
        return None
    return Refusal(
        f"this would change the series: {', '.join(series)}",
        "a server of the older series cannot follow one of the newer, so there is no way back",
        "rehearse it in the lab, then see docs/runbooks/mysql-maintenance.md",
    )


def rolling(topology: Topology, whole: Repair, hosts: Iterable[str]) -> Rolling | Refusal:
    """In which order to take ``hosts`` away one by one, or why not now."""
    if whole.steps or whole.notes:
        found = [f"{step.member}: {step.why}" for step in whole.steps] + list(whole.notes)
        return Refusal(
            f"the cluster is not whole: {'; '.join(found)}",
            "taking one more host away could stop writes",
            "fab mysql.ensure" if whole.steps else "fab mysql.status",
        )
    wanted = set(hosts)
    primary = whole.primary
    others = topology.others(primary)
    serving = [one.name for one in others if follower_objection(one, primary) is None]
    if len(serving) < 2:
        return Refusal(
            f"{primary.name} has {len(serving)} acknowledging replicas: {', '.join(serving)}",
            "with one of them away, writes would wait until it is back",
            "fab mysql.add-replica",
        )
    return Rolling(
        tuple(one.name for one in others if one.name in wanted),
        primary.name if primary.name in wanted else None,
    )


def steps(plan: Rolling) -> Iterator[str]:
    """The plan in words."""
    for name in plan.replicas:
        yield f"{name}: take it away, bring it back, wait until it has caught up"
    if plan.primary:
        yield f"{plan.primary}: move its role to the replica nearest to it, then the same"


def types(present: Mapping[str, str], wanted: str) -> dict[str, str]:
    """Which hosts have another instance type than they should: {name: the type it has}."""
    return {name: kind for name, kind in present.items() if kind != wanted}


def begun(topology: Topology, configured: int) -> list[str]:
    """Members that an earlier run launched and did not finish.

    They hold nothing yet, or half a copy, or are beyond the ``configured`` number and silent.
    """
    blank = [member.name for member in topology.members if member.is_blank or member.closed]
    silent = [name for name in sorted(topology.silent) if _number(name) > configured]
    return [*blank, *silent]


def size(configured: int, present: Collection[str], unfinished: Collection[str]) -> int:
    """How many hosts there should be: none more where some are unfinished, those of fleet.yml
    where some are missing, else one more. Names are ``<role>-<n>``.
    """
    highest = max(map(_number, present), default=0)
    missing = {*range(1, configured + 1)} - {_number(name) for name in present}
    return max(configured, highest) if unfinished or missing else highest + 1


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0

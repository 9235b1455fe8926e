"""What remains of a deploy that was cut off: its journal, and hosts and load balancers as they are.

The journal tells what was wanted, and what was proved; everything else is looked at again, for a
killed run may have done more, or less, than it wrote down. Invariant: every host of the plan, and
every host that came since, is in exactly one of: in place, to be moved, gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flotilla.rules.deploy import Host, Plan, undo
from flotilla.rules.rotation import FULL, UP


@dataclass(frozen=True, slots=True)
class Story:
    """What a journal tells.

    ``proved`` are hosts that were done when the run ended; ``going_back`` is why it was taking the
    release back, "" when it was not; ``result`` is "" for a run that was cut off.
    """

    plan: Plan
    proved: frozenset[str] = frozenset()
    going_back: str = ""
    result: str = ""

    @property
    def is_open(self) -> bool:
        """Whether something is left to do: cut off, or stopped with hosts left behind."""
        return self.result in {"", "stopped"}


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left. ``plan`` has the batches to roll, none when going back.

    ``done`` are hosts on the new version, in the order they got there; ``out`` hosts that are at
    some step in between, with what is seen of them; ``gone`` hosts of the plan that are no more.
    """

    plan: Plan
    done: tuple[str, ...] = ()
    out: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()


def story(lines: Sequence[Mapping[str, Any]]) -> Story | None:
    """Read a journal; None for one without a plan that can be carried out, as older ones may be."""
    plan = next((_plan(line.get("plan")) for line in lines if line["event"] == "begin"), None)
    if plan is None:
        return None
    proved: set[str] = set()
    going_back, result = "", ""
    for line in lines:
        event = line["event"]
        if event in {"intent", "stage", "resumed"}:
            # After an end too: hosts that came meanwhile are rolled in a second pass.
            result = ""
        if event == "intent":
            proved.discard(line["host"])
        elif event == "proved":
            proved.add(line["host"])
        elif event == "going back":
            going_back = str(line["why"]) or "it was going back"
        elif event == "end":
            result = str(line["result"])
    return Story(plan, frozenset(proved), going_back, result)


def why_not_open(told: Story | None, deploy_id: str) -> str | None:
    """Why there is nothing to go on with."""
    if told is None:
        return f"{deploy_id} has no plan in its journal: it ended before any host was touched"
    return None if told.is_open else f"{deploy_id} was not cut off: it ended with {told.result!r}"


def is_in_place(host: Host, version: str | None) -> bool:
    """Whether a host runs ``version`` and every load balancer gives it its full part."""
    if host.version != version:
        return False
    if version is None:
        return not host.is_out
    up = bool(host.views) and all(view.status == UP for view in host.views.values())
    return host.active and up and host.share == FULL


def forward(told: Story, hosts: Sequence[Host]) -> Remaining:
    """What must be rolled for every host to have the new version.

    A host that is in place but was not proved is tried again; so is one that came meanwhile with
    another release.
    """
    plan, here = told.plan, {host.name: host for host in hosts}
    new = plan.version

    def right(name: str) -> bool:
        host = here[name]
        return is_in_place(host, new) and (name in told.proved or name not in plan.previous)

    planned = [name for name in plan.hosts if name in here]
    added = [name for name in here if name not in plan.previous]
    batches = [tuple(n for n in b if n in here and not right(n)) for b in plan.batches]
    late = [name for name in added if not right(name)]
    batches += reversed(undo(list(reversed(late)), _largest(plan))) if late else []
    return Remaining(
        plan=_with(plan, [batch for batch in batches if batch], here),
        done=tuple(name for name in planned if right(name)),
        gone=_gone(plan, here),
    )


def back(told: Story, hosts: Sequence[Host]) -> Remaining:
    """What must be rolled back for every host to have what it had.

    A host that came meanwhile with the new version gets what most others had.
    """
    plan, here = told.plan, {host.name: host for host in hosts}
    usual = _usual(plan.previous.values())
    previous = dict(plan.previous)
    for name, host in here.items():
        if name not in previous and name not in plan.skipped:
            previous[name] = usual if host.version == plan.version else host.version
    order = [*plan.hosts, *(name for name in previous if name not in plan.previous)]
    wrong = [n for n in order if n in here and not is_in_place(here[n], previous[n])]
    serving = [n for n in wrong if _serves(here[n]) and here[n].version != previous[n]]
    whole = _with(plan, list(plan.batches), here)
    return Remaining(
        plan=Plan(plan.version, whole.batches, previous, plan.floor, plan.skipped),
        done=tuple(serving),
        out={n: _seen(here[n]) for n in wrong if n not in serving},
        gone=_gone(plan, here),
    )


def previous(
    told: Sequence[Story], running: Collection[str | None], staged: Sequence[Collection[str]]
) -> list[str]:
    """The release before the one that hosts run; several when only hosts can tell and they cannot.

    ``told`` newest first; ``staged`` are the releases on each host.
    """
    for one in told if len(running) == 1 else ():
        if one.result == "done" and one.plan.version in running:
            before = _usual(v for v in one.plan.previous.values() if v != one.plan.version)
            if before:
                return [before]
    everywhere = set.intersection(*map(set, staged)) if staged else set()
    return sorted(everywhere - set(running))


def described(told: Story, left: Remaining, *, is_back: bool) -> str:
    """What will be done, for people."""
    if is_back:
        lines = [f"Take {told.plan.version} back:"]
        lines += [f"  {n}, {seen}: back to {_before(left, n)}" for n, seen in left.out.items()]
        lines += [f"  {n}, serves {told.plan.version}: {_before(left, n)}" for n in left.done]
    else:
        lines = [f"Go on with {told.plan.version}:"]
        lines += [f"  batch: {', '.join(batch)}" for batch in left.plan.batches]
        lines += [f"  done already: {', '.join(left.done)}"] if left.done else []
    lines += [f"  gone: {', '.join(left.gone)}"] if left.gone else []
    return "\n".join(lines if len(lines) > 1 else [*lines, "  every host is in place"])


def _plan(fields: Any) -> Plan | None:
    """The plan in a journal; None for one that lacks what a plan has."""
    try:
        return Plan(
            version=fields["version"],
            batches=tuple(tuple(batch) for batch in fields["batches"]),
            previous=dict(fields["previous"]),
            floor=int(fields["floor"]),
            skipped=dict(fields.get("skipped", {})),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _with(plan: Plan, batches: Sequence[tuple[str, ...]], here: Mapping[str, Host]) -> Plan:
    """The plan with other batches, and what hosts ran that it did not know."""
    previous = {name: host.version for name, host in here.items()} | dict(plan.previous)
    return Plan(plan.version, tuple(batches), previous, plan.floor, plan.skipped)


def _usual(versions: Iterable[str | None]) -> str | None:
    counted = Counter(versions).most_common(1)
    return counted[0][0] if counted else None


def _largest(plan: Plan) -> int:
    return max((len(batch) for batch in plan.batches), default=1)


def _gone(plan: Plan, here: Mapping[str, Host]) -> tuple[str, ...]:
    return tuple(name for name in plan.hosts if name not in here)


def _serves(host: Host) -> bool:
    return bool(host.views) and all(view.is_serving for view in host.views.values())


def _seen(host: Host) -> str:
    views = ", ".join(f"{view.status} on {lb}" for lb, view in sorted(host.views.items()))
    part = "" if host.share == FULL else f", with {host.share:g}% of its weight"
    return f"{views or 'on no load balancer'}{part}"


def _before(left: Remaining, name: str) -> str:
    return left.plan.previous.get(name) or "no release"

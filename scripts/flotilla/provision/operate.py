"""Provision and destroy as an operator does: look, agree, lock, act, look again, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

from flotilla import audit
from flotilla.aws.lease import Held
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.lock import Lock
from flotilla.provision import destroy, parts, ready, storage
from flotilla.provision.change import Change
from flotilla.provision.world import World
from flotilla.rules.placement import STATEFUL
from flotilla.settings import Settings
from flotilla.snapshot import Snapshot

Confirm = Callable[[Sequence[Change]], None]
Say = Callable[[str], None]

# The same lock as a deploy's: neither may move hosts under the other.
LOCK = "deploy"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was changed, and how long it took."""

    changes: tuple[Change, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """``changed`` (how many), ``changes`` and ``seconds``, for ``--json``."""
        return {
            "changed": len(self.changes),
            "changes": [change.as_dict() for change in self.changes],
            "seconds": round(self.seconds, 1),
        }


def summary(changes: Iterable[Change]) -> str:
    """A plan as people read it: one line for each kind, with the names."""
    lines = []
    for (verb, kind), group in groupby(changes, key=lambda change: (change.verb, change.kind)):
        members = [f"{c.name} ({c.detail})" if c.detail else c.name for c in group]
        count = f"{len(members)} x " if len(members) > 1 else ""
        lines.append(f"  {verb:6} {count}{kind}: {', '.join(members)}")
    return "\n".join(lines)


def provision(
    settings: Settings,
    *,
    confirmed: Confirm,
    said: Say,
    shrink: Sequence[str] = (),
    take_over: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Make AWS as fleet.yml says.

    ``confirmed`` is given the plan and raises to stop; ``said`` gets a line for each part. Raises
    BadOption or Refused with nothing changed, FlotillaError where AWS does not end as it should.
    """
    start = clock()
    _demand_stateful(shrink)
    plan = parts.plan(World(settings), shrink=shrink)
    if not plan:
        return Outcome((), clock() - start)
    confirmed(plan)
    world = World(settings)
    storage.ensure_table(world, destroy.LOCKS)
    with _locked(settings, "fleet.provision", take_over=take_over):
        _same(plan, parts.plan(world, shrink=shrink))
        done = _recorded(
            settings,
            "fleet.provision",
            lambda: parts.converge(world, shrink=shrink, told=_steps(said)),
        )
    return Outcome(tuple(done), clock() - start)


def _demand_stateful(roles: Sequence[str]) -> None:
    if unknown := [role for role in roles if role not in STATEFUL]:
        raise BadOption(
            f"--shrink is {', '.join(unknown)}: it must be of {', '.join(sorted(STATEFUL))}; "
            "the other tiers shrink without it",
            untouched="Nothing was changed",
            next="fab fleet.provision",
        )


def await_hosts(
    settings: Settings, *, said: Say, clock: Callable[[], float] = time.monotonic
) -> Snapshot:
    """Wait until every host answers SSH. Raises Unreachable naming those that do not."""
    start = clock()
    snapshot = ready.await_ssh(World(settings))
    said(f"{len(snapshot.hosts)} hosts answer SSH ... ok {clock() - start:.1f} s")
    return snapshot


def take_away(
    settings: Settings,
    *,
    data: bool,
    confirmed: Confirm,
    said: Say,
    take_over: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Delete the fleet; with ``data``, its buckets and secrets too.

    ``confirmed`` and ``said`` as in ``provision``. Raises Refused with nothing changed,
    FlotillaError where something is left.
    """
    start = clock()
    world = World(settings)
    plan = destroy.plan(world, data=data)
    if not plan:
        return Outcome((), clock() - start)
    confirmed(plan)
    storage.ensure_table(world, destroy.LOCKS)
    with _locked(settings, "fleet.destroy", take_over=take_over):
        _same(plan, destroy.plan(world, data=data), but=destroy.lock_table(world))
        done = _recorded(settings, "fleet.destroy", lambda: destroy.carry_out(world, data=data))
    done += destroy.finish(world, data=data)
    said(f"{len(done)} deleted, nothing left ... ok {clock() - start:.1f} s")
    return Outcome(tuple(done), clock() - start)


@contextmanager
def _locked(settings: Settings, command: str, *, take_over: bool) -> Iterator[Lock]:
    lock = Lock(settings, LOCK, reason=command, take_over=take_over)
    with ExitStack() as held:
        try:
            held.enter_context(lock)
        except Held as error:
            error.next = f"wait for it, or, when that run is dead: fab {command} --take-over"
            raise
        yield lock


def _same(agreed: Sequence[Change], now: Sequence[Change], but: Sequence[Change] = ()) -> None:
    """Refuse when more would be done than was agreed to; less is fine."""
    known = {str(change) for change in (*agreed, *but)}
    if more := [str(change) for change in now if str(change) not in known]:
        raise Refused(
            f"AWS changed while the plan was read; now there is also: {'; '.join(more)}",
            why="nobody has agreed to that",
            untouched="Nothing was changed",
            next="the same command again",
        )


def _recorded(settings: Settings, command: str, act: Callable[[], list[Change]]) -> list[Change]:
    try:
        done = act()
    except FlotillaError as error:
        audit.record(settings, command, "failed", error=error.what)
        raise
    audit.record(settings, command, "done", changes=[str(change) for change in done])
    return done


def _steps(said: Say) -> Callable[[str, int, float], None]:
    order = {part: number for number, part in enumerate(parts.PARTS, start=1)}

    def told(part: str, changes: int, seconds: float) -> None:
        what = f"{changes} changes" if changes else "nothing to do"
        said(f"[{order[part]}/{len(order)}] {part}: {what} ... ok {seconds:.1f} s")

    return told

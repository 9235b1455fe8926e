"""Carry out a failover that the rules have decided on, from any member or from the operator.

Up to the change of the record everything may be begun again, or given up: members go back to the
old primary. From there on there is only forward, and whoever comes next completes it. A step is in
the journal before it begins and after it ended, and may be done twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from itertools import groupby

from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.mysql import Server, differences, look
from flotilla.mysql import positions, steps, takeover
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.cluster import Cluster, Seat
from flotilla.mysql.failover_parts import Announcer, Book, Done, Guard, Log, Nobody, under
from flotilla.mysql.fencing import Fence
from flotilla.rules.mysql import Refusal, follower_objection, primary_objection
from flotilla.rules.mysql_completion import completion
from flotilla.rules.mysql_failover import (
    Act,
    Found,
    Opening,
    Promotion,
    Step,
    promotion,
    shortfall,
)
from flotilla.rules.mysql_state import State
from flotilla.rules.mysql_topology import Member, Record
from flotilla.wait import DeadlineError, until

__all__ = ["Done", "Failover"]

DRAIN_SECONDS = 30.0
# EC2 takes tens of seconds to stop a host, and says so when it has.
FENCE_SECONDS = 120.0
VERIFY_SECONDS = 15.0
# With the API away for a moment, the term may still be written under the same lease.
RECORD_SECONDS = 10.0

# A heartbeat is sent while there is nothing to send, one a second: nobody waited for a write then.
_LAST_HEARD = """
SELECT LAST_QUEUED_TRANSACTION_ORIGINAL_COMMIT_TIMESTAMP AS written,
  LAST_HEARTBEAT_TIMESTAMP AS idle
FROM performance_schema.replication_connection_status WHERE CHANNEL_NAME = ''
"""
_GAP = """
SELECT TIMESTAMPDIFF(MICROSECOND, %s, granted_at) / 1e6 AS gap FROM ops.term WHERE term = %s
"""


class Failover:
    """One run on one cluster, under a lease that is held already.

    ``run`` does it from the beginning, also where an earlier run was cut off before the record was
    changed. ``complete`` does what is left once the record names the new primary.
    """

    def __init__(
        self,
        cluster: Cluster,
        guard: Guard,
        book: Book,
        journal: Log,
        fence: Fence,
        *,
        known: Secrets | None = None,
        announcer: Announcer | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._guard = guard
        self._book = book
        self._journal = journal
        self._fence = fence
        self._known = known
        self._announcer = announcer or Nobody()
        self._monotonic = monotonic
        self._seconds: dict[str, float] = {}
        self._revoked: set[str] = set()
        self._kept: dict[str, str] = {}
        self._unable: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._last_heard: datetime | None = None
        self._is_recording = False

    def run(self, opened: Opening) -> Done:
        """Fail over. Raises Refused with the old primary's replicas given back to it, HostFailed.

        After HostFailed the record may name the new primary; ``complete`` finishes then.
        """
        self._journal.write("begin", **asdict(opened))
        with self._leased():
            try:
                state = self._state(opened.term - 1)
                self._open(opened)
                chosen, found = self._choose(opened, state)
                self._record(chosen)
            except FlotillaError as error:
                self._give_up(opened, error)
                raise
            return self._after_the_record(chosen, found)

    def complete(self) -> Done:
        """Finish what the record says: its primary serves, and whoever may follow follows."""
        state = self._state()
        self._journal.write("complete", term=state.record.term)
        left = completion(state, self._cluster.look(state.record))
        if isinstance(left, Refusal):
            raise Refused(left.what, left.why, "Nothing was changed", left.next)
        with self._leased():
            self._take(left.steps, left.new, left.term)
        waits = {left.new.name: left.waits} if left.waits else {}
        out = {**left.left_out, **self._left_out, **waits}
        return self._ended(Done(left.term, "", left.new.name, self._seconds, left_out=out))

    def _leased(self) -> AbstractContextManager[None]:
        return under(self._guard, (seat.server for seat in self._cluster.seats.values()))

    def _state(self, term: int | None = None) -> State:
        state = self._book.state()
        found = state.record.term if state else 0
        if state is None or term not in {None, found}:
            raise Refused(
                f"the record is at term {found}, not {term}" if state else "there is no record",
                "somebody else changed the primary" if state else "",
                "Nothing was changed",
                "fab mysql.status",
            )
        return state

    # --- before the record: may be begun again, or given up

    def _open(self, opened: Opening) -> None:
        """Revoke, then begin to fence: not before it is clear that this failover can end."""
        names = [step.member for step in opened.steps if step.act is Act.REVOKE]
        with self._step(Act.REVOKE, names):
            for name, reason in self._cluster.each(names, _try_revoke).items():
                if reason is None:
                    self._revoked.add(name)
                else:
                    self._kept[name] = reason
        short = shortfall(opened, self._revoked, self._kept)
        if short:
            raise _refused(short, opened)
        with self._step(Act.FENCE, [opened.old.name]):
            self._fence.begin()

    def _choose(self, opened: Opening, state: State) -> tuple[Promotion, Found]:
        """Somebody who holds and has applied everything; the next best one where that fails."""
        while True:
            found = self._positions(state)
            chosen = promotion(opened, state, found)
            if isinstance(chosen, Refusal):
                raise _refused(chosen, opened)
            try:
                self._ready(chosen, found)
            except (HostFailed, Unreachable) as error:
                self._unable[chosen.new.name] = error.what
                self._journal.write("unable", member=chosen.new.name, why=error.what)
            else:
                return chosen, found

    def _positions(self, state: State) -> Found:
        names = sorted(self._revoked)
        with self._step(Act.POSITIONS, names):
            seen = positions.read(self._cluster, names, state.record.uuid, state.baseline)
            silent = seen.topology.silent
            return Found(
                revoked=frozenset(self._revoked - silent.keys()),
                kept={**self._kept, **silent},
                fenced=self._fence.verified(0),
                topology=seen.topology,
                errant=seen.errant,
                unapplied=seen.unapplied,
                owed=seen.owed,
                unable=self._unable,
                lost=self._lost(seen),
            )

    def _lost(self, seen: positions.Positions) -> str:
        """What the old primary had committed before it was closed, and nobody here received."""
        before = self._fence.committed_before
        if not before or not seen.topology.members:
            return ""
        server = self._cluster.server(seen.topology.members[0].name)
        return differences(server, {"": (before, seen.held)}).get("", "")

    def _ready(self, chosen: Promotion, found: Found) -> None:
        """Bring the chosen one to where it only has to be opened."""
        server = self._cluster.server(chosen.new.name)
        for step in chosen.steps:
            if step.act is Act.RECORD:
                break
            with self._step(step.act, [step.member]):
                if step.act is Act.FENCED:
                    self._await_fence(chosen)
                elif step.act is Act.UNDELAY:
                    takeover.undelay(server)
                elif step.act is Act.DRAIN:
                    unapplied = found.unapplied.get(step.member, "")
                    takeover.drain(server, unapplied, seconds=DRAIN_SECONDS)
        # What never was is a date that there is not, and no datetime.
        heard = [at for row in server.query(_LAST_HEARD) for at in row.values()]
        self._last_heard = max((at for at in heard if isinstance(at, datetime)), default=None)

    def _await_fence(self, chosen: Promotion) -> None:
        if not self._fence.verified(FENCE_SECONDS):
            why = self._fence.failure or f"not within {FENCE_SECONDS:g} s"
            raise Refused(
                f"{chosen.old.name} could not be verified to be closed ({why})",
                "it may still tell clients OK, so nobody else may take writes",
                "Nobody was promoted",
                "stop that host by hand, then fab mysql.failover",
            )

    def _give_up(self, opened: Opening, error: FlotillaError) -> None:
        """Let the members acknowledge to the old primary again, if the record still names it."""
        if not self._is_recording:
            with suppress(FlotillaError):
                names = sorted(self._revoked | self._kept.keys())
                with self._step(Act.REPOINT, names):
                    self._cluster.each(names, lambda seat: _try_turn(seat, opened.old.address))
        self._journal.write("end", result="failed", what=error.what)

    def _record(self, chosen: Promotion) -> None:
        """The point of no return."""

        def written() -> bool:
            self._guard.check()
            try:
                self._book.write(
                    chosen.record,
                    fence=self._guard.term,
                    barred=chosen.barred,
                    baseline=chosen.baseline,
                )
            except Unreachable:
                return False
            return True

        with self._step(Act.RECORD, [chosen.new.name]):
            self._is_recording = True
            try:
                until(written, seconds=RECORD_SECONDS)
            except DeadlineError:
                raise HostFailed(
                    f"the record may or may not name {chosen.new.name}: the API does not answer",
                    "opening it could make two primaries",
                    "No write is lost",
                    "fab mysql.failover, which goes by the record",
                ) from None

    # --- after the record: only forward

    def _after_the_record(self, chosen: Promotion, found: Found) -> Done:
        acts = [step.act for step in chosen.steps]
        left = chosen.steps[acts.index(Act.RECORD) + 1 :]
        if not chosen.followers:
            # An operator gave up the others: it is opened once one of them acknowledges again.
            left = tuple(step for step in left if step.act not in {Act.GRANT, Act.VERIFY})
            self._left_out[chosen.new.name] = "; ".join(chosen.notes)
        try:
            self._take(left, chosen.new, chosen.term)
        except FlotillaError as error:
            self._journal.write("end", result="unfinished", what=error.what)
            raise HostFailed(
                f"term {chosen.term} belongs to {chosen.new.name}, but: {error.what}",
                "whether it takes writes is to be seen",
                "No write is lost",
                "fab mysql.failover, which completes it",
            ) from error
        return self._ended(
            Done(
                term=chosen.term,
                old=chosen.old.name,
                new=chosen.new.name,
                seconds=self._seconds,
                revoked=tuple(sorted(found.revoked)),
                proof=chosen.proof or self._fence.verified(0),
                fenced=self._fence.verified(0),
                gap_seconds=self._gap(chosen),
                given_up=chosen.given_up,
                left_out={**found.kept, **self._left_out},
            )
        )

    def _ended(self, done: Done) -> Done:
        self._journal.write("end", result="done", **asdict(done))
        return done

    def _take(self, todo: Sequence[Step], new: Member, term: int) -> None:
        for act, group in groupby(todo, key=lambda step: step.act):
            names = [step.member for step in group]
            with self._step(act, names):
                if act is Act.FENCED:
                    self._note_fence(names[0])
                else:
                    self._cluster.each(names, partial(self._do, act, new, term))
            if act is Act.GRANT:
                self._announcer.tell("", new.name)

    def _note_fence(self, old: str) -> None:
        """The promotion had another proof: without this one, a human must look after the host."""
        if not self._fence.verified(FENCE_SECONDS):
            self._left_out[old] = f"it could not be closed: {self._fence.failure or 'no answer'}"

    def _do(self, act: Act, new: Member, term: int, seat: Seat) -> None:
        server = seat.server
        actions: dict[Act, Callable[[], None]] = {
            Act.DRAIN: lambda: steps.drain(server),
            Act.DETACH: lambda: takeover.promote(server),
            Act.REPOINT: lambda: self._behind(seat, new, _turn),
            Act.FOLLOW: lambda: self._behind(seat, new, self._follow),
            Act.GRANT: lambda: takeover.grant(server, term, new.uuid, self._guard.check),
            Act.VERIFY: lambda: self._verify(seat, new, term),
        }
        actions[act]()

    def _behind(self, seat: Seat, new: Member, work: Callable[[Server, str], None]) -> None:
        """One member that cannot follow does not hold up the others: GRANT waits for enough."""
        try:
            work(seat.server, new.address)
        except FlotillaError as error:
            self._left_out[seat.name] = error.what

    def _follow(self, server: Server, address: str) -> None:
        if self._known is None:
            raise Refused(f"{server.name}: the password of the replication account is not known")
        steps.follow(server, address, self._known)

    def _verify(self, seat: Seat, new: Member, term: int) -> None:
        record = Record(term, new.instance_id, new.uuid)
        objection = ""

        def is_right() -> bool:
            nonlocal objection
            member, _ = look(seat.server, instance_id=seat.instance_id, address=seat.address)
            objection = (
                primary_objection(member, record)
                if seat.name == new.name
                else follower_objection(member, new)
            ) or ""
            return not objection

        try:
            until(is_right, seconds=VERIFY_SECONDS)
        except DeadlineError:
            raise HostFailed(objection, next=f"fab fleet.logs {seat.name}") from None

    def _gap(self, chosen: Promotion) -> float | None:
        if self._last_heard:
            with suppress(FlotillaError):
                server = self._cluster.server(chosen.new.name)
                rows = server.query(_GAP, (self._last_heard, chosen.term))
                return float(rows[0]["gap"]) if rows and rows[0]["gap"] is not None else None
        return None

    @contextmanager
    def _step(self, act: Act, members: Sequence[str]) -> Iterator[None]:
        """One step: it is on the disk, the lease is ours, then it is done.

        In this order: who slept over the writing of a line finds out before anything is changed.
        """
        start = self._monotonic()
        self._journal.write("intent", act=act.value, members=list(members))
        self._guard.check()
        yield
        seconds = round(self._monotonic() - start, 4)
        self._journal.write("done", act=act.value, members=list(members), seconds=seconds)
        self._seconds[f"{act.value} {', '.join(members)}"] = seconds


def _try_revoke(seat: Seat) -> str | None:
    try:
        takeover.revoke(seat.server)
    except FlotillaError as error:
        return error.what
    return None


def _turn(server: Server, address: str) -> None:
    # The rules let nobody follow who holds something that the new primary lacks.
    error = takeover.turn(server, address, held_there=True)
    if error:
        raise HostFailed(f"it acknowledges, but its applier has stopped: {error}")


def _try_turn(seat: Seat, address: str) -> None:
    with suppress(FlotillaError):
        takeover.turn(seat.server, address)


def _refused(refusal: Refusal, opened: Opening) -> Refused:
    return Refused(
        refusal.what,
        refusal.why,
        f"Nobody was promoted; the record still names {opened.old.name}",
        refusal.next,
    )

"""A planned change of primary, with the old one's help: nothing is lost, writes pause for a moment.

Up to the change of the record everything can be taken back, and an abort leaves the old primary
writable as it was. From there on there is only forward: whoever comes next reads the record and
finishes (``fab mysql.ensure``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.mysql import LOCK_WAIT_TIMEOUT, SqlError, subtract
from flotilla.lock import Lock
from flotilla.mysql import steps, store
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.ensure import Progress, refused
from flotilla.mysql.failover_parts import under
from flotilla.mysql.leasing import leased
from flotilla.rules.mysql import Refusal, Switchover, repair, switchover
from flotilla.rules.mysql_topology import Record
from flotilla.settings import Settings

LAG_LIMIT_SECONDS = 2.0
# A commit or a table lock may hold up read-only for this long; then the switch is called off.
LOCK_WAIT_SECONDS = 5
CATCH_UP_SECONDS = 5.0

_POSITION = """
SELECT @@GLOBAL.gtid_executed AS executed, RECEIVED_TRANSACTION_SET AS received
FROM performance_schema.replication_connection_status WHERE CHANNEL_NAME = ''
"""


class Announcer(Protocol):
    """Who tells clients where writes go. What it does is a courtesy: health checks decide."""

    def arm(self, *members: str) -> None:
        """Writes will move in a moment, between these."""

    def tell(self, old: str, new: str) -> None:
        """Writes have moved, from one member to another."""


class Nobody:
    """Leaves it to the health checks."""

    def arm(self, *members: str) -> None:
        """Nothing to get ready."""

    def tell(self, old: str, new: str) -> None:
        """Nobody to tell."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A switch that was made. ``paused_seconds``: no server took writes, by our clock."""

    term: int
    old: str
    new: str
    paused_seconds: float
    seconds: Mapping[str, float] = field(default_factory=dict)


class Move:
    """One planned switchover. ``plan`` only looks; ``apply`` changes."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        *,
        announcer: Announcer | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._announcer = announcer or Nobody()
        self._monotonic = monotonic
        self._records = store.records(settings)
        self._known = store.secrets(settings)
        self._seconds: dict[str, float] = {}

    def plan(self, to: str | None = None) -> Switchover:
        """Whom it would promote. Raises Refused with the reason for each replica that may not."""
        state = self._records.state()
        record, barred = (state.record, state.barred) if state else (None, {})
        decision = switchover(
            self._cluster.look(record),
            record,
            to,
            lag_limit_seconds=LAG_LIMIT_SECONDS,
            barred=barred,
        )
        if isinstance(decision, Refusal):
            raise refused(decision)
        return decision

    def apply(self, chosen: Switchover, progress: Progress) -> Moved:
        """Switch to the one that ``chosen`` names, if the same still holds under the lease.

        Raises Refused when it was called off and the old primary takes writes as before.
        """
        with leased(self._settings, "fab mysql.switchover") as lock:
            with self._timed("check again", progress):
                plan = self._again(chosen)
                # A rotation may have gone on while the plan was read and agreed to.
                self._known = store.secrets(self._settings)
            with under(lock, (seat.server for seat in self._cluster.seats.values())):
                paused = self._switch(plan, lock, progress)
            with self._timed("verify", progress):
                self._verify(plan)
        return Moved(plan.term, plan.old.name, plan.new.name, paused, self._seconds)

    def _switch(self, plan: Switchover, lock: Lock, progress: Progress) -> float:
        """From the first change to writes on the new primary; how long nobody took any."""
        try:
            with self._timed("line up behind " + plan.new.name, progress):
                self._line_up(plan, lock)
            self._announcer.arm(plan.old.name, plan.new.name)
            start = self._monotonic()
            with self._timed(f"pause {plan.old.name}", progress):
                lock.check()
                executed = self._pause(plan)
            with self._timed(f"catch up {plan.new.name}", progress):
                self._catch_up(plan, executed)
            lock.check()
        except FlotillaError as error:
            self._call_off(plan, error)
            raise Refused(
                f"called off: {error.what}",
                "no replica can take over without losing writes",
                f"{plan.old.name} takes writes as before",
                error.next or "fab mysql.status",
            ) from error
        except BaseException as error:
            # Ctrl-C, or a disk here that is full: in the middle of a statement, whose session says
            # nothing sensible any more.
            self._cluster.server(plan.old.name).close()
            self._call_off(plan, error)
            raise
        with self._timed("record", progress):
            self._decide(plan, lock.term, "".join(executed.split()))
        self._after_the_record(plan, progress)
        paused = self._monotonic() - start
        with self._timed(f"turn {plan.old.name}", progress):
            self._turn(plan)
        return paused

    def _again(self, chosen: Switchover) -> Switchover:
        plan = self.plan(chosen.new.name)
        if (plan.term, plan.old.name) != (chosen.term, chosen.old.name):
            raise Refused(
                f"{plan.old.name} became primary of term {plan.term - 1} in the meantime",
                f"what was confirmed was a switch from {chosen.old.name}",
                "Nothing was changed",
                "fab mysql.switchover",
            )
        return plan

    def _line_up(self, plan: Switchover, lock: Lock) -> None:
        """Let the other replicas follow the new primary already, so that it has acknowledgers.

        Writes go on: the one to be promoted acknowledges alone for a moment.
        """
        lock.check()
        address = plan.new.address
        names = [member.name for member in plan.followers]
        self._cluster.each(names, lambda seat: steps.repoint(seat.server, address))
        if names:
            steps.await_acknowledger(self._cluster.server(plan.new.name), every=0.01)

    def _pause(self, plan: Switchover) -> str:
        """Stop writes on the old primary; everything it committed, as a GTID set."""
        rows = self._cluster.server(plan.old.name).batch(
            [
                # Without it, a commit that waits for its acknowledgement would hold this up for
                # ever, and everybody else behind it.
                ("SET SESSION lock_wait_timeout = %s", (LOCK_WAIT_SECONDS,)),
                "SET GLOBAL super_read_only = ON",
                "SELECT @@GLOBAL.gtid_executed AS executed",
            ],
            seconds=LOCK_WAIT_SECONDS + 2,
        )
        return str(rows[-1][0]["executed"])

    def _catch_up(self, plan: Switchover, executed: str) -> None:
        server = self._cluster.server(plan.new.name)
        rows = server.batch(
            [
                ("SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s) AS late", (executed, CATCH_UP_SECONDS)),
                _POSITION,
            ],
            seconds=CATCH_UP_SECONDS + 3,
        )
        if rows[0][0]["late"]:
            raise HostFailed(
                f"{plan.new.name} did not apply what {plan.old.name} had committed"
                f" within {CATCH_UP_SECONDS:g} s"
            )
        mine = rows[1][0]
        unapplied = subtract(server, {"received": mine["received"], "executed": mine["executed"]})
        if ("received", "executed") in unapplied:
            raise HostFailed(
                f"{plan.new.name} received {unapplied['received', 'executed']},"
                f" which {plan.old.name} never committed"
            )

    def _call_off(self, plan: Switchover, cause: BaseException) -> None:
        """Give the old primary back what it had. Raises HostFailed where that cannot be seen."""
        if isinstance(cause, SqlError) and cause.code == LOCK_WAIT_TIMEOUT:
            cause.next = "find the long commit or lock: SHOW PROCESSLIST on the primary"
        server = self._cluster.server(plan.old.name)
        try:
            server.batch(["SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF"])
            state = server.query("SELECT @@GLOBAL.read_only OR @@GLOBAL.super_read_only AS closed")
        except FlotillaError as error:
            raise self._left_closed(plan, error) from cause
        if state[0]["closed"]:
            raise self._left_closed(plan, cause) from cause
        for member in plan.followers:
            # Whoever cannot be turned back still follows, through the other replica.
            with suppress(FlotillaError):
                steps.repoint(self._cluster.server(member.name), plan.old.address)

    @staticmethod
    def _left_closed(plan: Switchover, error: BaseException) -> HostFailed:
        why = error.what if isinstance(error, FlotillaError) else type(error).__name__
        return HostFailed(
            f"the switch was called off, but {plan.old.name} may be read-only: {why}",
            "nobody takes writes until it is opened again",
            f"The record still names {plan.old.name}",
            "fab mysql.ensure",
        )

    def _decide(self, plan: Switchover, fence: int, baseline: str) -> None:
        record = Record(plan.term, plan.new.instance_id, plan.new.uuid)
        try:
            self._records.write(record, fence=fence, baseline=baseline)
        except Unreachable as error:
            # Written or not is not known, so neither of the two may be opened from here.
            raise HostFailed(
                f"the record may or may not name {plan.new.name}: {error.what}",
                "opening either one could make two primaries",
                f"{plan.old.name} and {plan.new.name} are read-only; no write is lost",
                "fab mysql.ensure, which goes by the record",
            ) from error
        except FlotillaError as error:
            self._call_off(plan, error)
            raise

    def _after_the_record(self, plan: Switchover, progress: Progress) -> None:
        try:
            with self._timed(f"promote {plan.new.name}", progress):
                self._promote(plan)
            with self._timed(f"open {plan.new.name}", progress):
                statements = steps.open_for_writes(plan.term, plan.new.uuid)
                self._cluster.server(plan.new.name).batch(statements, seconds=steps.GRANT_SECONDS)
        except FlotillaError as error:
            raise HostFailed(
                f"term {plan.term} belongs to {plan.new.name}, but it was not opened: {error.what}",
                "nobody takes writes until it is",
                "No write is lost",
                "fab mysql.ensure",
            ) from error
        with self._timed("announce", progress):
            self._announcer.tell(plan.old.name, plan.new.name)

    def _promote(self, plan: Switchover) -> None:
        new = self._cluster.server(plan.new.name)
        new.batch(
            [
                "STOP REPLICA",
                "RESET REPLICA ALL",
                "SET GLOBAL rpl_semi_sync_replica_enabled = OFF",
                "SET GLOBAL rpl_semi_sync_source_enabled = ON",
            ],
            seconds=steps.DRAIN_SECONDS,
        )
        if not plan.followers:
            self._turn(plan)
        steps.await_acknowledger(new, every=0.005)

    def _turn(self, plan: Switchover) -> None:
        """Let the old primary follow.

        Nothing waits on it any more: it is read-only, and all it had was acknowledged. Switching
        its source side off takes the server up to a second (it ends a thread that looks up once a
        second), which is why writes are open elsewhere by now.
        """
        old = self._cluster.server(plan.old.name)
        steps.source_off(old)
        steps.follow(old, plan.new.address, self._known)

    def _verify(self, plan: Switchover) -> None:
        for name in (plan.old.name, *(member.name for member in plan.followers)):
            steps.await_following(self._cluster.server(name), plan.new)
        state = self._records.state()
        record, barred = (state.record, state.barred) if state else (None, {})
        left = repair(self._cluster.look(record), record, barred)
        if isinstance(left, Refusal) or left.steps:
            found = left.what if isinstance(left, Refusal) else "; ".join(s.why for s in left.steps)
            raise HostFailed(
                f"{plan.new.name} is primary of term {plan.term} and takes writes, but: {found}",
                next="fab mysql.ensure",
            )

    @contextmanager
    def _timed(self, title: str, progress: Progress) -> Iterator[None]:
        start = self._monotonic()
        with progress(title):
            yield
        self._seconds[title] = round(self._monotonic() - start, 4)

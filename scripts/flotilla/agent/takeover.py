"""Fail over from a database host: win the lease, carry it out, report it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from flotilla.agent.fences import Stops, fence
from flotilla.agent.guard import Guard
from flotilla.agent.knowledge import Knowledge
from flotilla.agent.watch import Case
from flotilla.aws.lease import Held
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.mysql import reports
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.failover import Failover
from flotilla.mysql.failover_journal import Journal
from flotilla.mysql.failover_parts import Log
from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_failover import Act, Opening, opening
from flotilla.rules.mysql_flap import hold
from flotilla.rules.mysql_state import Past, Place

WAIT_FOR = 1

log = logging.getLogger("flotilla.watcher")


class Opens(Protocol):
    """Who makes sessions on members."""

    def server(self, place: Place) -> Server:
        """A new session, not yet opened."""

    def cluster(self, places: dict[str, Place]) -> Cluster:
        """New sessions on these members."""


class Noted:
    """A journal that has the failover remembered as soon as it took effect: a watcher that dies
    later must not leave the cluster free to fail over again.
    """

    def __init__(self, journal: Log, remember: Callable[[str], None]) -> None:
        self._journal = journal
        self._remember = remember

    def write(self, event: str, **fields: Any) -> None:
        """Add a line."""
        self._journal.write(event, **fields)
        # Not before writes go on: this takes a moment, and nobody can fail over meanwhile.
        if (event, fields.get("act")) == ("done", Act.GRANT.value):
            with suppress(FlotillaError):
                self._remember(fields["members"][0])


class Takeover:
    """What a watcher does with a case; ``holder`` is how it signs leases."""

    def __init__(
        self,
        knowledge: Knowledge,
        sessions: Opens,
        stops: Stops,
        known: Callable[[], Secrets],
        *,
        holder: str,
        journals: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._knowledge = knowledge
        self._sessions = sessions
        self._stops = stops
        self._known = known
        self._holder = holder
        self._journals = journals
        self._now = now
        self._failed_at: float | None = None
        self._held = ""

    def propose(self, case: Case) -> None:
        """Fail over if nothing speaks against it. Raises nothing of ours."""
        try:
            state = self._knowledge.records.state()
            if state is None or state.record != case.state.record:
                self._knowledge.hurry()
                return
            held = hold(state, self._holder, self._now(), failed_at=self._failed_at)
            if held:
                self._tell(f"no failover: {held}")
                return
            self._tell("")
            self._act(case)
        except Held as error:
            self._tell(f"no failover by this host: {error.what}")
        except FlotillaError as error:
            self._failed_at = self._now()
            log.warning("failover: %s", error)
        finally:
            self._knowledge.hurry()

    def _act(self, case: Case) -> None:
        term = case.state.record.term
        reason = f"{case.primary.name} is {case.verdict.kind}"
        with Guard(self._knowledge.records, self._holder, reason, term=term) as guard:
            # Read again under the lease: this is what is written back, and nobody else may now.
            state = self._knowledge.records.state()
            opened = opening(
                [self._rated(place, case) for place in self._knowledge.places.values()],
                state or case.state,
                case.verdict,
                case.reachable,
                me=self._holder,
                now=self._now(),
                wait_for=WAIT_FOR,
                degraded=case.look.alone,
            )
            if isinstance(opened, Refusal):
                self._failed_at = self._now()
                log.warning("no failover: %s: %s", opened.what, opened.why)
                return
            log.warning("failover to term %d: %s", opened.term, "; ".join(opened.evidence))
            with self._sessions.cluster(dict(self._knowledge.places)) as cluster:
                self._run(case, opened, guard, cluster)

    @staticmethod
    def _rated(place: Place, case: Case) -> Place:
        """Nobody is sent to a host whose endpoint is mute, however good its server."""
        return replace(place, rule="prefer_not") if place.name in case.mute else place

    def _run(self, case: Case, opened: Opening, guard: Guard, cluster: Cluster) -> None:
        journal = Noted(
            Journal.begin(self._journals, opened.term, self._now),
            lambda new: self._knowledge.records.remember(
                Past(self._now(), opened.term, opened.old.name, new)
            ),
        )
        closing = fence(case.look.reach, self._sessions.server(case.primary), opened, self._stops)
        known = self._known()
        run = Failover(cluster, guard, self._knowledge.records, journal, closing, known=known)
        begun = self._now()
        done = run.run(opened)
        seconds = self._now() - begun
        log.warning("%s is primary of term %d after %.2f s", done.new, done.term, seconds)
        report = reports.of(
            done, opened, case.verdict, by=self._holder, at=begun, wait_for=WAIT_FOR
        )
        reports.keep(cluster.server(done.new), report)

    def _tell(self, held: str) -> None:
        kind = "".join(filter(str.isalpha, held))  # figures differ with every try
        if held and kind != self._held:
            log.warning("%s", held)
        self._held = kind

"""Let one member take its place in the cluster again, by the rule that its own watcher goes by.

For when the watcher is paused, stopped or waits for a human: it looks, does one thing, and looks
again, until there is nothing left to do or something only a rebuild can mend.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.lock import Lock
from flotilla.mysql import reports, store
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.advised import carry_out, peers
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.ensure import Progress
from flotilla.mysql.failover_parts import under
from flotilla.rules.mysql_rejoin import Advice, Do, advise
from flotilla.rules.mysql_state import State
from flotilla.rules.mysql_topology import Member, Topology
from flotilla.settings import Settings
from flotilla.who import holder

# As long as a stream may take to connect to its source.
WAIT_SECONDS = 20.0
PAUSE_SECONDS = 0.5
MOST_STEPS = 12

_REBUILD = frozenset({Do.QUARANTINE, Do.CLONE})


@dataclass(frozen=True, slots=True)
class Found:
    """One look, and what is to be done because of it."""

    advice: Advice
    member: Member
    state: State
    topology: Topology


class Rejoining:
    """One run for one member. ``plan`` only looks; ``apply`` changes."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._name = name
        self._clock = clock
        self._sleep = sleep
        self._records = store.records(settings)

    def plan(self) -> Advice:
        """The first thing there is to do. Raises Refused where only a rebuild helps."""
        advice = self._look().advice
        if advice.do in _REBUILD:
            raise self._refused(advice)
        return advice

    def apply(self, lock: Lock, progress: Progress) -> list[str]:
        """Do everything there is to do, under the cluster's lease; what was done.

        Raises Refused where only a rebuild helps or nothing was done, HostFailed half-way.
        """
        done: list[str] = []
        known = store.secrets(self._settings)
        waited_since: float | None = None
        while len(done) < MOST_STEPS:
            found = self._look()
            advice = found.advice
            if advice.do is Do.NOTHING:
                self._completed(found, done)
                return done
            if advice.do in _REBUILD:
                raise self._refused(advice)
            if advice.do is Do.WAIT:
                waited_since = waited_since or self._clock()
                if self._clock() - waited_since > WAIT_SECONDS:
                    raise self._stuck(advice, done)
                self._sleep(PAUSE_SECONDS)
                continue
            waited_since = None
            lock.check()
            with (
                progress(f"{advice.do} {self._name}"),
                under(lock, [self._cluster.server(self._name)]),
            ):
                self._do(found, lock, known)
            done.append(f"{advice.do}: {advice.why}")
        raise self._stuck(Advice(Do.WAIT, "the same steps come again and again"), done)

    def _look(self) -> Found:
        """The member, then the record, as the rule wants it; what follows from it."""
        before = self._records.state()
        topology = self._cluster.look(before.record if before else None)
        state = self._records.state()
        member = topology.named(self._name)
        if member is None or state is None or before is None or before.record != state.record:
            why = topology.silent.get(self._name, "who is primary changed in this moment")
            raise Refused(
                f"{self._name} cannot rejoin: {why}",
                untouched="Nothing was changed",
                next="fab mysql.status",
            )
        # A pause holds the watchers, not the operator.
        ruled = replace(state, paused=None)
        advice = advise(
            member, ruled, peers(topology, member, state), holder=holder(), now=time.time()
        )
        return Found(advice, member, state, topology)

    def _do(self, found: Found, lock: Lock, known: Secrets) -> None:
        primary = found.topology.by_instance(found.state.record.instance_id)
        carry_out(
            found.advice,
            self._cluster.server(self._name),
            found.member,
            found.state,
            source=primary.address if primary else "",
            known=known,
            records=self._records,
            fence=lock.term,
            check=lock.check,
        )

    def _completed(self, found: Found, done: list[str]) -> None:
        """The report of the failover that it lost its role in says how it ended for it."""
        primary = found.topology.by_instance(found.state.record.instance_id)
        if not done or primary is None or primary.name == self._name:
            return
        fate = f"{self._name} follows {primary.name}; it held nothing that others lack"
        # A primary that waits for acknowledgements cannot be written to yet: no reason to fail.
        with suppress(FlotillaError):
            reports.complete(
                self._cluster.server(primary.name),
                self._name,
                lambda report: report.returned(None, fate),
            )

    def _refused(self, advice: Advice) -> Refused:
        return Refused(
            f"{self._name} cannot follow: {advice.why}",
            "what only it holds would come back with the next change of primary"
            if advice.do is Do.QUARANTINE
            else "what it lacks is nowhere to be had but in a copy",
            "It serves nobody, and stays as it is",
            f"fab mysql.rebuild {self._name}",
        )

    def _stuck(self, advice: Advice, done: list[str]) -> Refused | HostFailed:
        kind = HostFailed if done else Refused
        return kind(
            f"{self._name} waits: {advice.why}",
            untouched=f"Done: {'; '.join(done)}" if done else "Nothing was changed",
            next="fab mysql.status",
        )

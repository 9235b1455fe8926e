"""Keep this host's own server in the role that the record gives it.

A watcher changes no server but its own, except in a failover. Whatever lets acknowledgements or
writes begin is done under the cluster's lease and after everything was looked at again, so it can
never undo what a failover elsewhere has just revoked; what only closes is done at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from flotilla.agent.guard import Guard
from flotilla.agent.knowledge import Knowledge
from flotilla.aws.lease import Held
from flotilla.errors import FlotillaError, Unreachable
from flotilla.hosts.mysql import Server, look, position, subtract
from flotilla.hosts.mysql_glimpse import Glimpse
from flotilla.mysql import reports, steps, takeover
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.advised import carry_out, peers
from flotilla.mysql.failover_parts import under
from flotilla.rules.mysql_rejoin import CLOSING, Advice, Do, Peers, advise
from flotilla.rules.mysql_report import Surplus
from flotilla.rules.mysql_standing import is_in_place
from flotilla.rules.mysql_state import Place, State
from flotilla.rules.mysql_topology import Member, Topology

# A server that looks right is looked at in full all the same, as not all shows at a glance.
CHECK_SECONDS = 30.0
RETRY_SECONDS = 1.0

log = logging.getLogger("flotilla.watcher")


class Opens(Protocol):
    """Who makes sessions on members."""

    def server(self, place: Place) -> Server:
        """A new session, not yet opened."""


class Duty:
    """One host's duty; ``holder`` is how its watcher signs leases. Not for two threads."""

    def __init__(
        self,
        knowledge: Knowledge,
        sessions: Opens,
        known: Callable[[], Secrets],
        *,
        holder: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._knowledge = knowledge
        self._sessions = sessions
        self._known = known
        self._holder = holder
        self._clock = clock
        self._now = now
        self._servers: dict[str, tuple[Place, Server]] = {}
        self._checked = clock() - CHECK_SECONDS
        self._advice = Advice(Do.WAIT, "nothing was looked at yet")
        self._trouble = ""

    @property
    def word(self) -> str:
        """What is to be done and why, for the endpoint; "" while all is well."""
        return "" if self._advice.do is Do.NOTHING else f"{self._advice.do}: {self._advice.why}"

    def turn(self, seen: Glimpse | None) -> None:
        """Do what this host's server needs, if it does. Raises nothing of ours."""
        me, state, primary = self._knowledge.me, self._knowledge.state, self._knowledge.primary
        if seen is None or me is None or state is None or not self._is_due(seen, state, primary):
            return
        self._checked = self._clock()
        try:
            self._serve(me)
            self._trouble = ""
        except FlotillaError as error:
            if error.what != self._trouble and not isinstance(error, Held):
                log.warning("%s", error)
            self._trouble = error.what

    def _is_due(self, seen: Glimpse, state: State, primary: Place | None) -> bool:
        waited = self._clock() - self._checked
        mine = self._knowledge.instance_id
        right = (
            self._advice.do is Do.NOTHING
            and mine not in state.barred
            and is_in_place(
                seen,
                state.record,
                is_primary=mine == state.record.instance_id,
                source=primary.address if primary else "",
            )
        )
        return waited >= (CHECK_SECONDS if right else RETRY_SECONDS)

    def _serve(self, me: Place) -> None:
        advice, member, state = self._advised(me)
        self._note(advice)
        if state is None or advice.do in {Do.NOTHING, Do.WAIT, Do.CLONE}:
            return
        if advice.do in CLOSING:
            self._do(advice, member, state)
            return
        term = state.record.term
        with (
            Guard(self._knowledge.records, self._holder, advice.why, term=term) as guard,
            under(guard, [self._server(me)]),
        ):
            again, member, state = self._advised(me)
            if again.do is not advice.do or state is None:
                self._note(again)
                return
            guard.check()
            if again.do is Do.QUARANTINE:
                self._quarantine(again, member, state, guard)
            else:
                self._do(again, member, state, guard)
        # What it led to is looked at soon.
        self._checked = self._clock() - CHECK_SECONDS
        self._knowledge.hurry()

    def _advised(self, me: Place) -> tuple[Advice, Member, State | None]:
        """Look at this server, then at the record, then at the others; what follows from it."""
        server = self._server(me)
        member, _ = look(server, instance_id=me.instance_id, address=me.address)
        asked = self._clock()
        state = self._knowledge.records.state()
        self._knowledge.learn(state, asked)
        known = peers(self._others(member, server, me), member, state) if state else Peers(None)
        advice = advise(member, state, known, holder=self._holder, now=self._now())
        return advice, member, state

    def _others(self, member: Member, server: Server, me: Place) -> Topology:
        """Of a replica's view, the primary only: one that is frozen must not hold this up."""
        primary = self._knowledge.primary
        places = self._knowledge.places.values() if primary == me else [primary] if primary else []
        found = {
            place.name: answer
            for place in places
            if place != me and (answer := self._look(place)) is not None
        }
        others = [other for other, _ in found.values()]
        sets = {one.name: position(one) for one in (member, *others)}
        source = found.get(primary.name) if primary else None
        return Topology(
            (member, *others),
            surplus=subtract(server, sets),
            stranded=frozenset(
                {member.name} if source and _lacks(server, source[1], member) else ()
            ),
        )

    def _look(self, place: Place) -> tuple[Member, str] | None:
        server = self._server(place)
        for _ in range(1 if server.socket is None else 2):
            try:
                return look(server, instance_id=place.instance_id, address=place.address)
            except Unreachable:
                continue  # a session may have ended long ago: that says nothing of now
            except FlotillaError:
                return None
        return None

    def _do(self, advice: Advice, me: Member, state: State, guard: Guard | None = None) -> None:
        primary = self._knowledge.primary
        carry_out(
            advice,
            self._server(self._place(me)),
            me,
            state,
            source=primary.address if primary else "",
            known=self._known(),
            records=self._knowledge.records,
            fence=guard.term if guard else 0,
            check=guard.check if guard else lambda: None,
        )
        log.warning("%s: done", advice.do)
        if advice.unbar and primary:
            self._report(None, f"{me.name} follows {primary.name}: nobody lacks what it held")

    def _report(self, surplus: Surplus | None, fate: str) -> None:
        """How the failover that this host lost its role in ended for it; no report, no harm."""
        me, primary = self._knowledge.me, self._knowledge.primary
        if me is None or primary is None:
            return
        try:
            reports.complete(
                self._server(primary), me.name, lambda report: report.returned(surplus, fate)
            )
        except FlotillaError as error:
            log.warning("the report was not completed: %s", error.what)

    def _quarantine(self, advice: Advice, me: Member, state: State, guard: Guard) -> None:
        """Out for all to know, and nothing comes or goes: its rows must not spread."""
        server = self._server(self._place(me))
        takeover.revoke(server)
        server.query("STOP REPLICA", seconds=steps.DRAIN_SECONDS)
        barred = {**state.barred, me.instance_id: advice.why}
        self._knowledge.records.bar(barred, term=state.record.term, fence=guard.term)
        log.warning("quarantined: %s; next: fab mysql.rebuild %s", advice.why, me.name)
        fate = f"{me.name} is kept out until it is rebuilt: fab mysql.rebuild {me.name}"
        self._report(Surplus(me.name, advice.gtids), fate)

    def _place(self, me: Member) -> Place:
        return self._knowledge.places[me.name]

    def _server(self, place: Place) -> Server:
        known = self._servers.get(place.name)
        if known is None or known[0] != place:
            known = self._servers[place.name] = (place, self._sessions.server(place))
        return known[1]

    def _note(self, advice: Advice) -> None:
        if replace(advice, gtids="") != replace(self._advice, gtids=""):
            log.info("%s: %s", advice.do, advice.why)
        self._advice = advice


def _lacks(server: Server, purged: str, me: Member) -> bool:
    """Whether this member lacks something that its primary has purged."""
    return ("purged", "me") in subtract(server, {"purged": purged, "me": position(me)})

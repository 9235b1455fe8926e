"""The MySQL cluster that our watchers keep, as a drill sees it."""

from __future__ import annotations

import time
from typing import Any

from flotilla.drill.commands import told
from flotilla.drill.subject import Alive, View, awaited, revived
from flotilla.errors import FlotillaError, Refused
from flotilla.hosts.mysql import Server
from flotilla.mysql import status, store
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.session import Session
from flotilla.rules.mysql import follower_objection, primary_objection
from flotilla.rules.mysql_state import foreign_claim
from flotilla.rules.mysql_topology import Record, Topology
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

# A host that boots, a watcher that looks, a replica that catches up.
REJOIN_SECONDS = 60.0
WHOLE_SECONDS = 120.0
# As near as a switchover wants a member to be, and some.
CLOSE_SECONDS = 1.0
# For how long a member must be seen to hold something of its own before it is rebuilt.
SURE_SECONDS = 3.0

# A server whose disk was full looks again once a minute; until then a commit waits.
TRY_SECONDS = 5.0
_TRY = (
    "CREATE TABLE IF NOT EXISTS ops.drill (id INT PRIMARY KEY)",
    "REPLACE INTO ops.drill VALUES (1)",
    "DROP TABLE ops.drill",
)


class Watched:
    """Our own cluster, seen from the operator's place."""

    def __init__(self, settings: Settings, opened: Session) -> None:
        self._settings = settings
        self._opened = opened
        self._records = store.records(settings)
        self._without: dict[str, Cluster] = {"": opened.cluster}

    def view(self, but: str = "") -> View:
        """See ``Subject``; the record says who is primary, each member whether that is so."""
        record = self._records.read()
        if record is None:
            raise Refused("there is no record of a primary", next="fab mysql.ensure")
        if but not in self._without:
            seats = self._opened.cluster.seats.values()
            self._without[but] = Cluster(seat for seat in seats if seat.name != but)
        topology = self._without[but].look(record)
        primary = topology.by_instance(record.instance_id)
        names = {member.uuid: member.name for member in topology.members}
        return View(primary.name if primary else "", record.term, disorder(topology, record), names)

    def arm(self) -> None:
        """See ``Subject``."""
        state = self._records.state()
        if state and state.paused and state.paused.until > time.time():
            raise Refused(
                f"{state.paused.by} has paused the cluster: {state.paused.reason}",
                "nobody would take over from a primary that is struck",
                "Nothing was struck",
                "fab mysql.unpause",
            )
        self._records.acknowledge()

    def give(self, to: str) -> None:
        """See ``Subject``. A member that was out is waited for: it has to catch up first."""
        awaited(lambda: self._is_close(to), WHOLE_SECONDS, f"{to} has caught up")
        told(self._settings, "mysql.switchover", "--to", to, "--writers", "0", "--yes")

    def server(self, name: str) -> Server:
        """See ``Subject``."""
        return self._opened.cluster.server(name)

    def mend(self, old: str, alive: Alive, *, is_emptied: bool = False) -> list[str]:
        """See ``Subject``. A member that alone holds something is rebuilt; its surplus is saved.

        ``is_emptied``: a stop costs the host its data.
        """
        words: list[str] = []
        # A fence asks for as long as it has not seen the host stopped: one that is started at once
        # is stopped again, and so on.
        awaited(self._is_over, WHOLE_SECONDS, "nobody is changing the cluster any more")
        self._rejoin(old, alive, words)
        if words[-1] not in {"kept", "rejoined"} or (is_emptied and "stopped" in words):
            self.rebuild(old)
            words.append("rebuilt")
        self._whole()
        # Whoever struck it knows of the failover: it must hold up no other one.
        self._records.acknowledge()
        return words

    def _rejoin(self, old: str, alive: Alive, words: list[str]) -> None:
        """Wait until a member follows, or until it is clear that it will not by itself."""
        own_since: list[float] = []

        def settled() -> str:
            # A fence that waits for nobody may come late: look each time.
            if self.revive(old):
                words.append("stopped")
                alive(old)
            member = self._member(old)
            if member.get("role") == "primary":
                return "" if member["why"] else "kept"
            if not member.get("surplus"):
                own_since.clear()
                return "" if member["why"] else "rejoined"
            own_since.append(time.monotonic())
            return "quarantined" if own_since[-1] - own_since[0] >= SURE_SECONDS else ""

        try:
            words.append(until(settled, seconds=REJOIN_SECONDS, every=1.0))
        except DeadlineError:
            words.append("left out")

    def revive(self, name: str) -> bool:
        """Start a host that was stopped, and wait until it can be used; whether it was stopped."""
        return revived(self._settings, self._opened.runner, self._opened.snapshot.host(name))

    def rebuild(self, name: str) -> None:
        """Make a member a copy of another one."""
        told(self._settings, "mysql.rebuild", name, "--yes")

    def _member(self, name: str) -> dict[str, Any]:
        """One member of the board; a look that failed is a reason to look again."""
        try:
            found = status.status(self._opened.cluster, self._records)["members"]
        except FlotillaError as error:
            return {"why": error.what}
        return next(member for member in found if member["name"] == name)

    def _is_over(self) -> bool:
        state = self._records.state()
        return state is not None and foreign_claim(state, "", time.time()) is None

    def _is_close(self, name: str) -> bool:
        member = self._member(name)
        return not member["why"] and (member["lag_seconds"] or 0.0) < CLOSE_SECONDS

    def _whole(self) -> None:
        """Wait until nothing is out of order and writes end. Raises FlotillaError with what is."""
        why = ""

        def whole() -> bool:
            nonlocal why
            try:
                view = self.view()
                why = view.why
                if not why:
                    self.server(view.primary).batch(_TRY, seconds=TRY_SECONDS)
            except FlotillaError as error:
                why = error.what
            return not why

        try:
            until(whole, seconds=WHOLE_SECONDS, every=1.0)
        except DeadlineError:
            raise FlotillaError(
                f"the cluster is not whole after the drill: {why}", next="fab mysql.status"
            ) from None


def disorder(topology: Topology, record: Record) -> str:
    """What keeps the members of a look from being one cluster that takes writes; "" for nothing."""
    primary = topology.by_instance(record.instance_id)
    if primary is None:
        silent = "; ".join(topology.silent.values())
        return f"the primary of term {record.term} was not seen" + (f" ({silent})" * bool(silent))
    objections = [
        primary_objection(primary, record),
        *(follower_objection(member, primary) for member in topology.others(primary)),
        *topology.silent.values(),
    ]
    if not primary.semi_sync.clients:
        objections.append(f"nobody acknowledges to {primary.name}")
    objections += [
        f"{of} alone holds {gtids}"
        for (of, to), gtids in topology.surplus.items()
        if to == primary.name
    ]
    return "; ".join(why for why in objections if why)

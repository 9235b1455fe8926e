"""Strike the primary of a store again and again while clients write, and tell what they saw.

Nothing of it asks where it runs. A run begins and ends with everything in order; whoever was left
out by the failover is brought back with clients at work, and acknowledged writes that this cost
would count as lost. What a kind of store has of its own is in a subclass of ``Drill``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

from flotilla.drill.clients import Clients
from flotilla.drill.faults import Outside
from flotilla.drill.subject import LOOK_SECONDS, Alive, Subject, View
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.rules import drill_writes as rules
from flotilla.rules.drill_fault import Aim, Ends, Fault, Power
from flotilla.snapshot import Host

Say = Callable[[str], None]

CALM_SECONDS = 3.0
# Clients go on writing for so long after the fault was undone: a former primary that would still
# take a write had its chance.
AFTER_SECONDS = 5.0
CONVERGE_SECONDS = 120.0
# A restart is asked for, and has not begun when the answer comes.
BEGUN_SECONDS = 5.0
WHOLE_SECONDS = 60.0
PROBE_SECONDS = 0.05
# A run takes half a minute at least; a writer is a thread, and a connection.
MOST_RUNS, MOST_WRITERS = 1000, 64


class Drill(ABC):
    """Runs of one fault on one subject. ``board`` is the command that shows the store."""

    board: str
    look_seconds = LOOK_SECONDS

    def __init__(
        self,
        subject: Subject,
        *,
        members: Collection[Host],
        apps: Collection[Host],
        said: Say,
    ) -> None:
        self._subject = subject
        self._members, self._apps = members, apps
        self._said = said

    # --- what a kind of store has of its own ------------------------------------------------------

    @abstractmethod
    def clients(self, writers: int) -> Clients:
        """So many writers on every application host, not yet begun."""

    @abstractmethod
    def struck(self, fault: Fault, aim: Aim) -> AbstractContextManager[None]:
        """The fault, for as long as the block lasts."""

    def prepare(self, fault: Fault) -> None:
        """Before each run: what this fault needs in order to be possible."""
        del fault  # most need nothing

    def mend(self, fault: Fault, old: str, alive: Alive) -> list[str]:
        """Put back what ``fault`` left over; see ``Subject.mend``."""
        del fault
        return self._subject.mend(old, alive)

    # --- runs -------------------------------------------------------------------------------------

    def all(self, fault: Fault, runs: int, writers: int) -> dict[str, Any]:
        """Every run, and all of them together; ends early when something could not be put back."""
        each: list[dict[str, Any]] = []
        for number in range(runs):
            each.append(self.run(fault, writers))
            self._said(line(number, runs, each[-1]))
            if each[-1]["not_mended"]:
                break
        return summed(each, fault) | {"writers": writers * len(self._apps)}

    def run(self, fault: Fault, writers: int) -> dict[str, Any]:
        """One fault under clients; its figures."""
        self.prepare(fault)
        before = self.whole()
        self._subject.arm()
        aim = self._aim(fault, before)
        with self.clients(writers) as clients:
            time.sleep(CALM_SECONDS)
            times = self._struck(fault, before, aim)
            fate, not_mended = self._mended(fault, before.primary, clients)
            seen = rules.Seen(
                **times,
                ended=time.time(),
                old=before.primary,
                fate=fate,
                cut_off=aim.cut_off,
                probe_seconds=PROBE_SECONDS,
                **self._closed(clients),
            )
        return rules.figures(seen) | {"not_mended": not_mended}

    def _struck(self, fault: Fault, before: View, aim: Aim) -> dict[str, Any]:
        """Make the fault, wait until the cluster got over it, undo it; when all that was."""
        struck = time.time()
        with self.struck(fault, aim):
            converged = self._got_over_it(fault, before, struck, is_struck=True)
        if converged is None:
            # What cut the primary off may have cut us off from everybody else.
            converged = self._got_over_it(fault, before, struck, is_struck=False)
        time.sleep(AFTER_SECONDS)
        return {"struck": struck, "converged": converged, "healed": time.time()}

    def _closed(self, clients: Clients) -> dict[str, Any]:
        """End the clients: what they were told, what is there, and who is primary."""
        time.sleep(1.0)
        told, probes, missing = clients.fetch()
        after = self._subject.view()
        if not after.primary:
            raise FlotillaError(
                f"nobody is primary after the drill: {after.why}",
                "what clients were told cannot be compared with what is there",
                next=self.board,
            )
        return {
            "clients": told,
            "probes": probes,
            "missing": missing,
            "found": clients.rows(after.primary),
            "new": after.primary,
            "names": after.names,
            "term": after.term,
        }

    def _mended(self, fault: Fault, old: str, clients: Clients) -> tuple[list[str], str]:
        """What became of the old primary, and what could not be put back; clients still write."""
        try:
            return self.mend(fault, old, clients.revive), ""
        except FlotillaError as error:
            return ["not brought back"], error.what

    def _got_over_it(
        self, fault: Fault, before: View, struck: float, *, is_struck: bool
    ) -> float | None:
        """Wait until the cluster is in order without help, and the fault's time is over too.

        When that was; None if not in time, or if the fault's time is over and nobody can be asked.
        """
        moved = fault.ends is Ends.MOVED
        hold = max(fault.hold_seconds, 0.0 if moved else BEGUN_SECONDS)
        converged: float | None = None
        is_seen = True
        while (now := time.time()) < struck + CONVERGE_SECONDS:
            held = now >= struck + hold
            if held and (converged is not None or (is_struck and not is_seen)):
                break
            if (held or moved) and converged is None:
                is_seen, is_over = self._seen(fault, before.primary)
                converged = time.time() if is_over else None
            time.sleep(self.look_seconds)
        return converged

    def _seen(self, fault: Fault, old: str) -> tuple[bool, bool]:
        """Whether anybody can be asked, and whether nothing is out of order: once somebody else is
        primary, without ``old``, which may not be able to come back while the fault lasts.
        """
        try:
            view = self._subject.view(old if fault.ends is Ends.MOVED else "")
            if fault.ends is Ends.EITHER and view.why and view.primary not in {"", old}:
                view = self._subject.view(old)
        except FlotillaError:
            return False, False
        may_be_old = fault.ends is not Ends.MOVED
        return bool(view.names), not view.why and (may_be_old or view.primary != old)

    def whole(self) -> View:
        """The cluster, in order. Raises Refused when it is not."""
        end = time.monotonic() + WHOLE_SECONDS
        while True:
            view = self._subject.view()
            if not view.why:
                return view
            if time.monotonic() > end:
                raise Refused(
                    f"the cluster is not whole: {view.why}",
                    why="a drill begins with everything in order, or its figures mean nothing",
                    untouched="Nothing was struck",
                    next=self.board,
                )
            time.sleep(1.0)

    def _aim(self, fault: Fault, before: View) -> Aim:
        found = rules.aim(
            fault,
            before.primary,
            {host.name: host.zone for host in self._members},
            {host.name: host.zone for host in self._apps},
        )
        if isinstance(found, str):
            raise Refused(found, untouched="Nothing was struck", next=self.board)
        return found


def demand(faults: Mapping[str, Fault], fault: str, *, runs: int, writers: int, next_: str) -> None:
    """Raise BadOption for what cannot be rehearsed; ``next_`` is the command that tells more."""
    given = (("runs", runs, MOST_RUNS), ("writers", writers, MOST_WRITERS))
    wrong = [f"{name} {n}: it is 1 to {most}" for name, n, most in given if not 1 <= n <= most]
    why = ", ".join(wrong)
    if fault not in faults:
        why = f"there is no fault {fault!r}; choose from: {', '.join(faults)}"
    if why:
        raise BadOption(why, untouched="Nothing was changed", next=next_)


def demand_power(fault: Fault, outside: Outside | None, env: str, more: str = "") -> None:
    """Raise Refused where a fault (with what else is asked for) takes a power nobody here has."""
    if outside is None and (more or fault.power is Power.OUTSIDE):
        raise Refused(
            f"the fault {fault.name} cannot be made in environment {env}{more}",
            why="it is made outside of the hosts, and nothing here has that power over them",
            untouched="Nothing was changed",
            next="fab lab.up, to have that power in a lab",
        )


def summed(each: list[dict[str, Any]], fault: Fault) -> dict[str, Any]:
    """All runs together, with the promises that were broken."""
    over = rules.over_all(each)
    broken = [
        f"run {number}: {why}"
        for number, run in enumerate(each, 1)
        for why in rules.broken(run, fault)
    ]
    broken += rules.broken_by_all(over, fault, len(each))
    return {"runs": len(each), "fault": fault.name, **over, "broken": broken, "each": each}


def line(number: int, runs: int, run: dict[str, Any]) -> str:
    """One run for people."""
    converged = run["converged_seconds"]
    term = f" (term {run['term']})" if run["term"] else ""
    return (
        f"[{number + 1}/{runs}] {run['old']} -> {run['new']}"
        f"{term}: "
        f"gap {run['write_gap_seconds']:.2f} s, acknowledged {run['acked']}, lost {run['lost']}, "
        f"two at once {run['dual_writable_seconds']:g} s, "
        f"in order after {'never' if converged is None else f'{converged:.1f} s'}, "
        f"{run['old']} {run['old_primary']} ({run['ended_seconds']:.0f} s)"
    )

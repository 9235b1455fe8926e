"""Strike the MySQL primary again and again while clients write, and tell what they saw.

Nothing of it asks where it runs. A run begins and ends with the whole cluster in order; whoever was
left out by the failover (a host that was stopped, a former primary with writes of its own) is
brought back with clients at work, and acknowledged writes that this cost would count as lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from flotilla.drill.faults import Outside
from flotilla.drill.mysql_clients import PROBE_SECONDS, Clients
from flotilla.drill.mysql_cluster import LOOK_SECONDS, Subject, View, Watched
from flotilla.drill.mysql_faults import DATA, Site, strike, undone
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.mysql import store
from flotilla.mysql.session import Session, session
from flotilla.rules import drill_mysql as rules
from flotilla.rules.drill_mysql import Aim, Ends, Fault, Power
from flotilla.settings import Settings
from flotilla.words import counted

Say = Callable[[str], None]

CALM_SECONDS = 3.0
# Clients go on writing for so long after the fault was undone: a former primary that would still
# take a write had its chance.
AFTER_SECONDS = 5.0
CONVERGE_SECONDS = 120.0
# A restart is asked for, and has not begun when the answer comes.
BEGUN_SECONDS = 5.0
WHOLE_SECONDS = 60.0
# Room on the file system that is to be filled: enough for a server to start and to write a while,
# and for InnoDB's redo log, which takes up to 100 MiB (innodb_redo_log_capacity) as it turns.
ROOM_BYTES = 384 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What to rehearse: a fault, how often, with how many writers on each application host.

    ``stop_seconds``: how long EC2 shall take to stop an instance, where somebody has that power.
    """

    fault: str
    runs: int = 1
    writers: int = 2
    stop_seconds: float = 0.0

    def demand(self) -> None:
        """Raise BadOption for what cannot be rehearsed."""
        why = ""
        if self.fault not in rules.FAULTS:
            why = f"there is no fault {self.fault!r}; choose from: {', '.join(rules.FAULTS)}"
        elif self.runs < 1 or self.writers < 1 or self.stop_seconds < 0:
            why = (
                f"runs {self.runs} and writers {self.writers} are 1 or more, "
                f"stop-seconds {self.stop_seconds:g} is 0 or more"
            )
        if why:
            raise BadOption(why, untouched="Nothing was changed", next="fab --help drill.mysql")


def described(settings: Settings, options: Options) -> str:
    """The plan for people."""
    fault = rules.FAULTS[options.fault]
    return "\n".join(
        [
            f"Drill on {settings.prefix}: {counted(options.runs, 'time')}, {fault.about}",
            f"  {options.writers} writers on every application host, and a probe on every server",
            "  hosts that were stopped are started again, diverged ones are rebuilt",
        ]
    )


def failovers(
    settings: Settings, options: Options, *, said: Say, outside: Outside | None = None
) -> dict[str, Any]:
    """Rehearse; {runs, fault, write_gap_seconds, acked, lost, ..., each, broken}.

    See ``rules.drill_mysql``; ``broken`` names the promises that were not kept. Raises BadOption
    and Refused with nothing changed, FlotillaError when the cluster could not be made whole again.
    """
    options.demand()
    _demand(settings, options, outside)
    with session(settings, fresh=True) as opened:
        drill = Drill(settings, opened, Watched(settings, opened), outside, said)
        return drill.all(options)


class Drill:
    """Runs of one fault on one subject."""

    def __init__(
        self,
        settings: Settings,
        opened: Session,
        subject: Subject,
        outside: Outside | None,
        said: Say,
    ) -> None:
        self._settings = settings
        self._opened = opened
        self._subject = subject
        self._outside = outside
        self._said = said
        self._known = store.secrets(settings)
        self._apps = opened.snapshot.by_role("app")
        self._members = opened.snapshot.by_role("mysql")
        self._roomy = ""

    def all(self, options: Options) -> dict[str, Any]:
        """Every run, and all of them together."""
        fault = rules.FAULTS[options.fault]
        each: list[dict[str, Any]] = []
        with ExitStack() as stack:
            stack.enter_context(self._slow_stops(options.stop_seconds))
            stack.enter_context(self._room_given_back())
            for number in range(options.runs):
                each.append(self.run(fault, options.writers))
                self._said(line(number, options.runs, each[-1]))
                if each[-1]["not_mended"]:
                    break
        return summed(each, fault) | {"writers": options.writers * len(self._apps)}

    def run(self, fault: Fault, writers: int) -> dict[str, Any]:
        """One fault under clients; its figures."""
        if fault.name == "disk-full":
            self._make_room()
        before = self._whole()
        self._subject.arm()
        aim = self._aim(fault, before)
        with Clients(
            self._settings,
            self._known,
            self._opened.runner,
            apps=self._apps,
            servers=self._members,
            writers=writers,
        ) as clients:
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
        site = self._site()
        with undone(site):
            struck = time.time()
            strike(site, fault, aim)
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
                next="fab mysql.status",
            )
        return {
            "clients": told,
            "probes": probes,
            "missing": missing,
            "found": clients.rows(self._subject.server(after.primary)),
            "new": after.primary,
            "names": after.names,
            "term": after.term,
        }

    def _mended(self, fault: Fault, old: str, clients: Clients) -> tuple[list[str], str]:
        """What became of the old primary, and what could not be put back; clients still write."""
        emptied = fault.name == "disk-full" and self._outside is not None
        try:
            return self._subject.mend(old, clients.revive, is_emptied=emptied), ""
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
                is_seen, is_over = self._seen(but=before.primary if moved else "")
                converged = time.time() if is_over else None
            time.sleep(LOOK_SECONDS)
        return converged

    def _seen(self, but: str) -> tuple[bool, bool]:
        """Whether anybody can be asked, and whether nothing is out of order without ``but``."""
        try:
            view = self._subject.view(but)
        except FlotillaError:
            return False, False
        return bool(view.names), not view.why and view.primary != but

    def _whole(self) -> View:
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
                    next="fab mysql.status",
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
            raise Refused(found, untouched="Nothing was struck", next="another --fault")
        return found

    def _site(self) -> Site:
        return Site(
            self._settings,
            self._opened.runner,
            {host.name: host for host in self._members},
            {host.name: host for host in self._apps},
            self._known,
            self._subject.give,
            self._outside,
        )

    # --- what some faults need beforehand ---------------------------------------------------------

    @contextmanager
    def _slow_stops(self, seconds: float) -> Iterator[None]:
        if not seconds or self._outside is None:
            yield
            return
        self._outside.strike("api", "slow-stop", seconds=f"{seconds:g}")
        try:
            yield
        finally:
            self._outside.heal("api")

    def _make_room(self) -> None:
        """Where hosts share one file system: have a primary that has one of its own, to fill it.

        That takes a restart of its server, so a replica gets it, and then the role.
        """
        if self._outside is None:
            return
        primary = self._whole().primary
        if not self._roomy:
            self._roomy = next(host.name for host in self._members if host.name != primary)
            self._outside.strike(
                self._roomy, "fill-disk", path=DATA, free=str(ROOM_BYTES), unit="mysql"
            )
            self._whole()
        if primary != self._roomy:
            self._subject.give(self._roomy)

    @contextmanager
    def _room_given_back(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._roomy and self._outside is not None:
                self._outside.heal(self._roomy)
                self._subject.mend(self._roomy, lambda _: None)


def _demand(settings: Settings, options: Options, outside: Outside | None) -> None:
    needs = rules.FAULTS[options.fault].power is Power.OUTSIDE or options.stop_seconds > 0
    if needs and outside is None:
        raise Refused(
            f"the fault {options.fault} cannot be made in environment {settings.env}"
            + (" with slow stops" if options.stop_seconds else ""),
            why="it is made outside of the hosts, and nothing here has that power over them",
            untouched="Nothing was changed",
            next="another --fault",
        )


def summed(each: list[dict[str, Any]], fault: Fault) -> dict[str, Any]:
    """All runs together, with the promises that were broken."""
    over = rules.over_all(each)
    broken = [
        f"run {number}: {why}"
        for number, run in enumerate(each, 1)
        for why in rules.broken(run, fault)
    ]
    broken += rules.broken_by_all(over, fault)
    return {"runs": len(each), "fault": fault.name, **over, "broken": broken, "each": each}


def line(number: int, runs: int, run: dict[str, Any]) -> str:
    """One run for people."""
    converged = run["converged_seconds"]
    return (
        f"[{number + 1}/{runs}] {run['old']} -> {run['new']} (term {run['term']}): "
        f"gap {run['write_gap_seconds']:.2f} s, acknowledged {run['acked']}, lost {run['lost']}, "
        f"two at once {run['dual_writable_seconds']:g} s, "
        f"in order after {'never' if converged is None else f'{converged:.1f} s'}, "
        f"{run['old']} {run['old_primary']} ({run['ended_seconds']:.0f} s)"
    )

"""Strike the MySQL primary again and again while clients write; see ``drill.writes``.

Whoever was left out by the failover (a host that was stopped, a former primary with writes of its
own) is started, rejoined or rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from flotilla.drill import strikes, subject, writes
from flotilla.drill.faults import Outside
from flotilla.drill.mysql_clients import Clients
from flotilla.drill.mysql_cluster import Watched
from flotilla.drill.mysql_faults import DATA, STRIKES, UNIT, Site
from flotilla.drill.subject import Alive
from flotilla.errors import BadOption, Refused
from flotilla.hosts.mysql import Server
from flotilla.mysql import store
from flotilla.mysql.session import Session, session
from flotilla.rules.drill_fault import Aim, Fault
from flotilla.rules.drill_mysql import FAULTS
from flotilla.settings import Settings
from flotilla.snapshot import Snapshot
from flotilla.words import counted

Say = Callable[[str], None]

# Room on the file system that is to be filled: enough for a server to start and to write a while,
# and for InnoDB's redo log, which takes up to 100 MiB (innodb_redo_log_capacity) as it turns.
ROOM_BYTES = 384 << 20
# EC2 itself takes a minute, and gives up a stop that is not forced after some.
MOST_STOP_SECONDS = 600.0
HELP = "fab --help drill.mysql"


class Subject(subject.Subject, Protocol):
    """Something of MySQL servers that fails over."""

    def server(self, name: str) -> Server:
        """A session on a member, as one who may read and delete everywhere."""

    def mend(self, old: str, alive: Alive, *, is_emptied: bool = False) -> list[str]:
        """See ``drill.subject``; ``is_emptied`` says that a stop cost the host its data."""


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
        writes.demand(FAULTS, self.fault, runs=self.runs, writers=self.writers, next_=HELP)
        if not 0 <= self.stop_seconds <= MOST_STOP_SECONDS:
            raise BadOption(
                f"stop-seconds {self.stop_seconds:g} is 0 to {MOST_STOP_SECONDS:g}",
                untouched="Nothing was changed",
                next=HELP,
            )


def described(settings: Settings, options: Options) -> str:
    """The plan for people."""
    fault = FAULTS[options.fault]
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

    See ``rules.drill_writes``; ``broken`` names the promises that were not kept. Raises BadOption
    and Refused with nothing changed, FlotillaError when the cluster could not be made whole again.
    """
    options.demand()
    fault = FAULTS[options.fault]
    slow = " with slow stops" if options.stop_seconds else ""
    writes.demand_power(fault, outside, settings.env, slow)
    with session(settings, fresh=True) as opened, ExitStack() as stack:
        _demand_running(opened.snapshot)
        drill = Drill(settings, opened, Watched(settings, opened), outside, said)
        stack.enter_context(_slow_stops(outside, options.stop_seconds))
        stack.enter_context(drill.room_given_back())
        return drill.all(fault, options.runs, options.writers)


class Drill(writes.Drill):
    """Runs of one fault on one subject."""

    board = "fab mysql.status"

    def __init__(
        self,
        settings: Settings,
        opened: Session,
        subject: Subject,
        outside: Outside | None,
        said: Say,
    ) -> None:
        super().__init__(
            subject,
            members=opened.snapshot.by_role("mysql"),
            apps=opened.snapshot.by_role("app"),
            said=said,
        )
        self._group = subject
        self._settings = settings
        self._opened = opened
        self._outside = outside
        self._known = store.secrets(settings)
        self._roomy = ""

    def clients(self, writers: int) -> Clients:
        """See ``writes.Drill``; beside every server there is a probe."""
        return Clients(
            self._settings,
            self._known,
            self._opened.runner,
            apps=self._apps,
            servers=self._members,
            server=self._group.server,
            writers=writers,
        )

    def struck(self, fault: Fault, aim: Aim) -> AbstractContextManager[None]:
        """See ``writes.Drill``."""
        site = Site(
            settings=self._settings,
            runner=self._opened.runner,
            unit=UNIT,
            members={host.name: host for host in self._members},
            apps={host.name: host for host in self._apps},
            give=self._subject.give,
            outside=self._outside,
            known=self._known,
        )
        return strikes.struck(STRIKES, site, fault, aim)

    def mend(self, fault: Fault, old: str, alive: Alive) -> list[str]:
        """See ``writes.Drill``. The room is made in memory: a stop takes it away."""
        is_emptied = fault.name == "disk-full" and self._outside is not None
        return self._group.mend(old, alive, is_emptied=is_emptied)

    def prepare(self, fault: Fault) -> None:
        """Where hosts share one file system: have a primary that has one of its own, to fill it.

        That takes a restart of its server, so a replica gets it, and then the role.
        """
        if fault.name != "disk-full" or self._outside is None:
            return
        primary = self.whole().primary
        if not self._roomy:
            self._roomy = next(host.name for host in self._members if host.name != primary)
            self._outside.strike(
                self._roomy, "fill-disk", path=DATA, free=str(ROOM_BYTES), unit="mysql"
            )
            self.whole()
        if primary != self._roomy:
            self._subject.give(self._roomy)

    @contextmanager
    def room_given_back(self) -> Iterator[None]:
        """What was prepared is undone at the end of the block."""
        try:
            yield
        finally:
            if self._roomy and self._outside is not None:
                self._outside.heal(self._roomy)
                self._subject.mend(self._roomy, lambda _: None)


def _demand_running(snapshot: Snapshot) -> None:
    """A member that is stopped may hold the last writes: nobody would take over without it."""
    for host in snapshot.stopped("mysql"):
        raise Refused(
            f"the cluster is not whole: {host.name}'s host is {host.state}",
            why="a drill begins with everything in order, or its figures mean nothing",
            untouched="Nothing was struck",
            next=f"fab mysql.rejoin {host.name}",
        )


@contextmanager
def _slow_stops(outside: Outside | None, seconds: float) -> Iterator[None]:
    if not seconds or outside is None:
        yield
        return
    outside.strike("api", "slow-stop", seconds=f"{seconds:g}")
    try:
        yield
    finally:
        outside.heal("api")

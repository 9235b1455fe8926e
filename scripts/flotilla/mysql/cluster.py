"""Sessions on every member of a cluster, and one look at all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.hosts.mysql import SOCKET, Server, look, position, subtract
from flotilla.mysql.accounts import Account, Secrets, unusable
from flotilla.mysql.steps import holds_password
from flotilla.rules.mysql_topology import Member, Record, Topology

if TYPE_CHECKING:  # a database host has this module and no SSH client
    from flotilla.hosts.ssh import Runner
    from flotilla.snapshot import Host

T = TypeVar("T")

# A replica may hold what its source is about to commit: the source is given this long to do so
# before the difference is called a divergence.
IN_FLIGHT_SECONDS = 2.0
AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Seat:
    """One member's place: which host, and the session on its server."""

    name: str
    instance_id: str
    address: str
    server: Server


def through(runner: Runner, host: Host) -> Callable[[], Any]:
    """Streams to the Unix socket of a host's server, where root needs no password."""
    return lambda: runner.stream(host, f"exec socat - UNIX-CONNECT:{SOCKET}", sudo=True)


class Cluster:
    """The members of one cluster. Sessions open when they are first needed and stay open."""

    def __init__(self, seats: Iterable[Seat]) -> None:
        self.seats: Mapping[str, Seat] = {seat.name: seat for seat in seats}
        if not self.seats:
            raise Refused("the fleet has no MySQL host", next="fab fleet.provision")
        self._pool = ThreadPoolExecutor(2 * len(self.seats), "mysql")

    @classmethod
    def of(cls, runner: Runner, hosts: Iterable[Host]) -> Self:
        """The cluster on these hosts, spoken to through SSH."""
        return cls(
            Seat(h.name, h.instance_id, h.private_ip or "", Server(h.name, through(runner, h)))
            for h in hosts
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for seat in self.seats.values():
            seat.server.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def server(self, name: str) -> Server:
        """The session on a member."""
        return self.seats[name].server

    def each(self, names: Iterable[str], work: Callable[[Seat], T]) -> dict[str, T]:
        """Do ``work`` on several members at once; all finish before the first error is raised."""
        running = {name: self._pool.submit(work, self.seats[name]) for name in names}
        errors = [e for f in running.values() if (e := f.exception()) is not None]
        if errors:
            raise errors[0]
        return {name: future.result() for name, future in running.items()}

    def look(
        self, record: Record | None, wanted: Iterable[Account] = (), known: Secrets | None = None
    ) -> Topology:
        """Every member as it is. With ``known``, also which of the ``wanted`` accounts are amiss,
        and which replicas hold another password for their source.

        The recorded primary is read last: what a replica holds by then, its source has or is
        committing, so that running writes do not look like a divergence.
        """
        last = {
            s.name for s in self.seats.values() if record and s.instance_id == record.instance_id
        }
        members: dict[str, Member] = {}
        purged: dict[str, str] = {}
        silent: dict[str, str] = {}
        for names in (self.seats.keys() - last, last):
            for name, answer in self.each(names, _try_look).items():
                if isinstance(answer, FlotillaError):
                    silent[name] = answer.what
                else:
                    members[name], purged[name] = answer
        topology = Topology(tuple(sorted(members.values(), key=lambda m: m.rank)), silent)
        primary = next((members[name] for name in last if name in members), None)
        if primary is None:
            return topology
        server = self.server(primary.name)
        return replace(
            topology,
            surplus=self._surplus(server, primary, topology),
            stranded=_stranded(server, purged[primary.name], topology.others(primary)),
            unusable=unusable(server, wanted, known) if known else frozenset(),
            outdated=self._outdated(topology, known) if known else frozenset(),
        )

    def _outdated(self, topology: Topology, known: Secrets) -> frozenset[str]:
        def is_right(seat: Seat) -> bool:
            # Whoever does not answer any more is the next look's affair.
            with suppress(Unreachable):
                return holds_password(seat.server, known)
            return True

        names = [member.name for member in topology.members if member.replication]
        right = self.each(names, is_right)
        return frozenset(name for name in names if not right[name])

    def _surplus(
        self, server: Server, primary: Member, topology: Topology
    ) -> dict[tuple[str, str], str]:
        positions = {member.name: position(member) for member in topology.members}
        found = subtract(server, positions)
        ahead = ",".join(found.get((m.name, primary.name), "") for m in topology.others(primary))
        if not ahead.strip(","):
            return found
        server.query(
            "SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)",
            (ahead.strip(","), IN_FLIGHT_SECONDS),
            seconds=IN_FLIGHT_SECONDS + 3,
        )
        now = server.query("SELECT @@GLOBAL.gtid_executed AS executed")[0]["executed"]
        return subtract(server, positions | {primary.name: f"{positions[primary.name]},{now}"})


def _try_look(seat: Seat) -> tuple[Member, str] | FlotillaError:
    """A session that was open may have ended long ago, with its server: that says nothing of now.

    One that runs out of time is not tried again: a frozen server would be waited for twice.
    """
    was_open, start = seat.server.socket is not None, time.monotonic()
    try:
        return look(seat.server, instance_id=seat.instance_id, address=seat.address)
    except Unreachable as error:
        if was_open and time.monotonic() - start < AGAIN_SECONDS:
            return _try_look(seat)
        return error
    except FlotillaError as error:
        return error


def _stranded(server: Server, purged: str, followers: Iterable[Member]) -> frozenset[str]:
    if not purged:
        return frozenset()
    gone = "the purged"  # no member can have that name: it holds a space
    sets = {member.name: position(member) for member in followers} | {gone: purged}
    return frozenset(to for (of, to) in subtract(server, sets) if of == gone)

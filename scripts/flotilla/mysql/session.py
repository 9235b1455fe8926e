"""Everything a command on the MySQL cluster needs, opened together and closed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from flotilla import inventory
from flotilla.errors import FlotillaError, Refused
from flotilla.hosts.haproxy import SOCKET
from flotilla.hosts.ssh import Runner, prepare
from flotilla.ledger import Ledger, order, over_ssh
from flotilla.mysql import store
from flotilla.mysql.cluster import Cluster
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot

WRITER = "mysql_writer"
ANNOUNCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Session:
    """One operator's connection to the cluster and to the hosts that use it."""

    settings: Settings
    snapshot: Snapshot
    runner: Runner
    cluster: Cluster

    def ledger(self, host: str | None = None, *, writers: int = 4) -> Ledger:
        """Writers on an application host (the first one), not yet started."""
        users = self.snapshot.by_role("app")
        if host is None and not users:
            raise Refused(
                "the fleet has no application host to write from",
                "what a client sees can only be seen from where clients are",
                "Nothing was changed",
                "fab fleet.provision",
            )
        chosen = self.snapshot.host(host) if host else users[0]
        wanted = order(self.settings, store.secrets(self.settings), writers=writers)
        return Ledger(chosen.name, over_ssh(self.runner, chosen), wanted)

    def announcer(self) -> Announcements:
        """Something that tells every application host's HAProxy at once that writes have moved."""
        return Announcements(self.runner, self.snapshot.by_role("app"))


class Announcements:
    """Word to HAProxy on the application hosts, ahead of its health checks, which decide.

    Without it clients wait for two checks to miss. A host that cannot be told finds out by them.
    Connections to the sockets are opened beforehand: the telling then takes one message.
    """

    def __init__(self, runner: Runner, hosts: Iterable[Host]) -> None:
        self._runner = runner
        self._hosts = list(hosts)
        self._channels: list[Any] = []

    def arm(self) -> None:
        """Open the sockets. HAProxy closes them again after 10 s of silence."""
        with ThreadPoolExecutor(max(1, len(self._hosts))) as pool:
            wait([pool.submit(_tried, self._open, host) for host in self._hosts])

    def tell(self, old: str, new: str) -> None:
        """Send writes to ``new`` and cut the sessions on ``old``, if it is known."""
        words = f"set server {WRITER}/{new} health up"
        words += f"; set server {WRITER}/{old} health down\n" if old else "\n"
        for channel in self._channels:
            with suppress(OSError):
                channel.sendall(words.encode())
        for channel in self._channels:
            with suppress(OSError):
                channel.recv(1)
            channel.close()

    def _open(self, host: Host) -> None:
        channel = self._runner.stream(host, f"exec socat - UNIX-CONNECT:{SOCKET}", sudo=True)
        channel.settimeout(ANNOUNCE_SECONDS)
        self._channels.append(channel)


@contextmanager
def session(settings: Settings, *, fresh: bool) -> Iterator[Session]:
    """Open a session. ``fresh`` refuses a list of hosts that is too old to change things by."""
    oldest = inventory.max_age(settings) if fresh else None
    snapshot = inventory.load(settings, max_age_seconds=oldest)
    prepare(settings, snapshot)
    hosts = snapshot.by_role("mysql")
    with Runner(settings, snapshot) as runner, Cluster.of(runner, hosts) as cluster:
        _warm(runner, [*hosts, *snapshot.by_role("app")])
        yield Session(settings, snapshot, runner, cluster)


def _warm(runner: Runner, hosts: Iterable[Host]) -> None:
    """Connect to all at once; whoever cannot be reached says so when it is needed."""
    targets = list(hosts)
    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        wait([pool.submit(_tried, runner.connection, h) for h in targets])


def _tried(work: Callable[..., object], *args: object) -> None:
    try:
        work(*args)
    except FlotillaError:
        return

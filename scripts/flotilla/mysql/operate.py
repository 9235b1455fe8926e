"""Everything a command on the MySQL cluster needs, opened together and closed together."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from flotilla import inventory
from flotilla.errors import FlotillaError, Refused
from flotilla.hosts.haproxy import Runtime
from flotilla.hosts.ssh import Runner, prepare
from flotilla.ledger import Ledger, order
from flotilla.mysql import accounts
from flotilla.mysql.cluster import Cluster
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot

WRITER = "mysql_writer"
ANNOUNCE_SECONDS = 2.0


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
        wanted = order(self.settings, accounts.secrets(self.settings), writers=writers)
        return Ledger(chosen.name, lambda command: self.runner.stream(chosen, command), wanted)

    def announcer(self) -> Callable[[str, str], None]:
        """Something that tells every application host's HAProxy at once that writes have moved.

        It only comes before the health checks, which decide; a host that cannot be told finds out
        by them. Connections are opened here, so that the telling itself is quick.
        """
        runtimes = [_runtime(self.runner, host) for host in self.snapshot.by_role("app")]
        pool = ThreadPoolExecutor(max(1, len(runtimes)), "announce")
        wait([pool.submit(_tried, r.servers, WRITER) for r in runtimes])

        def tell(old: str, new: str) -> None:
            words = (
                f"set server {WRITER}/{new} health up",
                f"set server {WRITER}/{old} health down",
            )
            told = [pool.submit(_tried, r.command, *words) for r in runtimes]
            wait(told, timeout=ANNOUNCE_SECONDS)

        return tell


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


def holder() -> str:
    """Who this run is, unique to it: for leases and for the audit."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}-{time.time_ns() % 10**6}"


def _warm(runner: Runner, hosts: Iterable[Host]) -> None:
    """Connect to all at once; whoever cannot be reached says so when it is needed."""
    targets = list(hosts)
    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        wait([pool.submit(_tried, runner.connection, h) for h in targets])


def _runtime(runner: Runner, host: Host) -> Runtime:
    def ask(text: str) -> str:
        command = "exec socat -t5 - UNIX-CONNECT:/run/haproxy/admin.sock"
        return runner.run(host, command, sudo=True, stdin=text, seconds=5).stdout

    return Runtime(host.name, ask)


def _tried(work: Callable[..., object], *args: object) -> None:
    try:
        work(*args)
    except FlotillaError:
        return

"""Everything a command on the MySQL cluster needs, opened together and closed together."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from flotilla import inventory
from flotilla.errors import FlotillaError, Refused
from flotilla.hosts.haproxy import SOCKET
from flotilla.hosts.ssh import Runner, prepare
from flotilla.ledger import over_ssh
from flotilla.mysql import store
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.ledger import Ledger, order
from flotilla.rules.mysql_health import HEALTH_PORT
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot

WRITER = "mysql_writer"
ANNOUNCE_SECONDS = 1.0
# On a member: told "yes" or "no", have its endpoint look again until it says so too.
_AGREE = f"""\
import socket, sys, time
wanted = b"200" if sys.stdin.readline().strip() == "yes" else b"503"
end = time.monotonic() + {ANNOUNCE_SECONDS / 2}
while time.monotonic() < end:
    with socket.create_connection(("127.0.0.1", {HEALTH_PORT}), 0.5) as stream:
        stream.sendall(b"GET /look HTTP/1.0\\r\\n\\r\\n")
        if stream.makefile("rb").read().split()[1] == wanted:
            print("agreed", flush=True)
            break
    time.sleep(0.02)
else:
    print("not yet", flush=True)
"""


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
        return Announcements(
            self.runner, self.snapshot.by_role("app"), self.snapshot.by_role("mysql")
        )


class Announcements:
    """Word to HAProxy on the application hosts, ahead of its health checks, which decide.

    Without it clients wait for two checks to miss. A host that cannot be told finds out by them.
    The members' own endpoints are waited for before: where they still say what was, the next
    checks would undo the word, and clients be refused by both (seen in 2 of 20 switchovers, 1.1 and
    1.4 s). Everything is opened beforehand: the telling then takes one message to each.
    """

    def __init__(self, runner: Runner, users: Iterable[Host], members: Iterable[Host]) -> None:
        self._runner = runner
        self._users = list(users)
        self._members = {host.name: host for host in members}
        self._channels: list[Any] = []
        self._endpoints: dict[str, Any] = {}

    def arm(self, *members: str) -> None:
        """Open the sockets, of HAProxy and of the endpoints of ``members``. HAProxy closes its own
        after 10 s of silence.
        """
        opening = [
            *((self._open, host) for host in self._users),
            *((self._open_endpoint, self._members[name]) for name in members),
        ]
        with ThreadPoolExecutor(max(1, len(opening))) as pool:
            wait([pool.submit(_tried, work, host) for work, host in opening])

    def tell(self, old: str, new: str) -> None:
        """Send writes to ``new`` and cut the sessions on ``old``, if it is known."""
        if self._agree(old, new):
            words = f"set server {WRITER}/{new} health up"
            words += f"; set server {WRITER}/{old} health down\n" if old else "\n"
            for channel in self._channels:
                with suppress(OSError):
                    channel.sendall(words.encode())
            for channel in self._channels:
                with suppress(OSError):
                    channel.recv(1)
        for channel in (*self._channels, *self._endpoints.values()):
            channel.close()

    def _agree(self, old: str, new: str) -> bool:
        """Wait until ``old`` says no and ``new`` says yes, as far as they can be asked."""
        asked = [
            (channel, wanted)
            for name, wanted in ((old, "no"), (new, "yes"))
            if (channel := self._endpoints.get(name))
        ]
        for channel, wanted in asked:
            with suppress(OSError):
                channel.sendall(f"{wanted}\n".encode())
        answers = [_said(channel) for channel, _ in asked]
        return all(answer == b"agreed" for answer in answers)

    def _open(self, host: Host) -> None:
        channel = self._runner.stream(host, f"exec socat - UNIX-CONNECT:{SOCKET}", sudo=True)
        channel.settimeout(ANNOUNCE_SECONDS)
        self._channels.append(channel)

    def _open_endpoint(self, host: Host) -> None:
        channel = self._runner.stream(host, f"exec python3 -c {shlex.quote(_AGREE)}")
        channel.settimeout(ANNOUNCE_SECONDS)
        self._endpoints[host.name] = channel


def _said(channel: Any) -> bytes:
    try:
        return bytes(channel.recv(16)).strip()
    except OSError:
        return b""


@contextmanager
def session(settings: Settings, *, fresh: bool) -> Iterator[Session]:
    """Open a session. ``fresh`` asks EC2 who runs, and refuses a list too old to change things by.

    A list of some seconds ago lacks a host that was started since: the primary itself, one time in
    30 drills, and its replica could not be rebuilt as "the primary does not answer".
    """
    oldest = inventory.max_age(settings) if fresh else None
    snapshot = inventory.load(settings, max_age_seconds=oldest, refresh=fresh)
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

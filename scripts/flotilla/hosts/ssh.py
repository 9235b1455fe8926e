"""Run commands on hosts, through the bastion, with deadlines and checked host keys."""

from __future__ import annotations

import base64
import logging
import math
import select
import shlex
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import fabric
import paramiko
from paramiko.hostkeys import HostKeyEntry

from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.hosts import known_hosts
from flotilla.hosts.access import gateway, prepare
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.words import last_line

__all__ = ["Result", "Results", "Runner", "prepare"]

CONNECT_SECONDS = 10
COMMAND_SECONDS = 60

# sshd allows ten on a connection unless told otherwise; the rest is for streams.
SESSIONS = 6

# How much longer we wait than `timeout` on the host does: whoever hears nothing by then has lost
# the host, while exit code 124 says that the host is there and the command was too slow.
GRACE_SECONDS = 5
_TIMED_OUT = {124, 137}

# What paramiko logs is also raised, and said by us in one sentence.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_THREADS = 32
_CHUNK = 1 << 16


class Through(fabric.Connection):  # type: ignore[misc]  # it has no types
    """A connection that may lead through another one, and may lose that at any moment.

    paramiko's thread closes the way when it ends; where the bastion's connection has ended before,
    that raises in the thread, and threading prints it: a traceback above the board, once in three
    looks at a fleet with a frozen host. Whoever waits for an answer is told all the same.
    """

    def open_gateway(self) -> Any:
        """The channel to the host."""
        channel = super().open_gateway()
        close = channel.close

        def quietly() -> None:
            with suppress(EOFError, OSError):
                close()

        channel.close = quietly
        return channel


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind; ``rc`` is its exit code, -1 when a signal ended its shell."""

    host: str
    stdout: str
    stderr: str
    rc: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.rc == 0

    @property
    def last_words(self) -> str:
        """The last line of its talk, which says why a tool of ours failed; else its exit code."""
        return last_line(self.stderr, f"exit {self.rc}")


class Results(dict[str, Result | FlotillaError]):
    """By host name: its result, or the error that stands in its place."""

    @property
    def errors(self) -> dict[str, FlotillaError]:
        """Only the hosts that failed."""
        return {host: one for host, one in self.items() if isinstance(one, FlotillaError)}

    @property
    def results(self) -> dict[str, Result]:
        """Only the hosts that answered."""
        return {host: one for host, one in self.items() if isinstance(one, Result)}

    def raise_errors(self) -> None:
        """Raise one error that names every failed host; HostFailed wins over Unreachable."""
        errors = self.errors
        if not errors:
            return
        worst = min(errors.values(), key=lambda error: error.exit_code)
        raise type(worst)(
            "; ".join(error.what for error in errors.values()),
            why=worst.why,
            untouched=f"{len(self) - len(errors)} of {len(self)} hosts did it",
            next=worst.next,
        )


class Runner:
    """SSH to the hosts of one snapshot. Connections stay open until ``close``; safe for threads.

    ``prepare`` must have run for the snapshot: a host whose key is not known is Unreachable.
    """

    def __init__(
        self,
        settings: Settings,
        snapshot: Snapshot,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        port: int = 22,
    ) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self._seconds = connect_seconds
        self._port = port
        self._keys = known_hosts.load(settings)
        self._connections: dict[str, fabric.Connection] = {}
        self._locks: dict[str, threading.RLock] = defaultdict(threading.RLock)
        self._slots: dict[str, threading.Semaphore] = defaultdict(
            lambda: threading.BoundedSemaphore(SESSIONS)
        )
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, the bastion's last."""
        with self._guard:
            connections = list(self._connections.values())
            self._connections.clear()
        for connection in sorted(connections, key=lambda one: one.gateway is None):
            connection.close()

    def run(
        self,
        host: Host | str,
        command: str,
        *,
        sudo: bool = False,
        stdin: str = "",
        seconds: float = COMMAND_SECONDS,
        check: bool = True,
    ) -> Result:
        """Run a shell command on a host; secrets go to ``stdin``, for others can read arguments.

        The host itself ends the command after ``seconds``. Raises HostFailed for that, and with
        ``check`` for any exit code but 0; Unreachable when the host does not answer.
        """
        target = self._snapshot.host(host) if isinstance(host, str) else host
        with self._guard:
            slots = self._slots[target.instance_id]
        with slots, self._session(target) as channel:
            start = time.monotonic()
            with _unreachable(target, f"during {_short(command)}"):
                fed = stdin.encode()
                channel.exec_command(_bounded(command, sudo=sudo, seconds=seconds, fed=bool(fed)))
                out, err, rc = _talk(channel, fed, start + seconds + GRACE_SECONDS)
        result = Result(target.name, out, err, rc, time.monotonic() - start)
        if rc in _TIMED_OUT and result.seconds >= seconds:
            raise HostFailed(f"{target.name}: {_short(command)} was ended after {seconds:g} s")
        if check and not result.ok:
            ended = f"exited {rc}" if rc >= 0 else "was ended by a signal"
            why = last_line(err or out, "it said nothing")
            raise HostFailed(f"{target.name}: {_short(command)} {ended}: {why}")
        return result

    def run_on(
        self, hosts: Iterable[Host | str], command: str | Callable[[Host], str], **options: Any
    ) -> Results:
        """``run`` on every host at once; ``command`` may depend on the host."""
        return self.each(
            hosts,
            lambda host: self.run(host, command(host) if callable(command) else command, **options),
        )

    def each(self, hosts: Iterable[Host | str], work: Callable[[Host], Result]) -> Results:
        """Do ``work`` for every host at once, and keep each one's result or error."""
        targets = [self._snapshot.host(h) if isinstance(h, str) else h for h in hosts]

        def attempt(host: Host) -> Result | FlotillaError:
            try:
                return work(host)
            except FlotillaError as error:
                return error

        if not targets:
            return Results()
        with ThreadPoolExecutor(max_workers=min(_THREADS, len(targets))) as pool:
            answers = pool.map(attempt, targets)
            return Results(zip([host.name for host in targets], answers, strict=True))

    def put(self, host: Host | str, content: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file as root, at once (a reader sees the old or the new one)."""
        quoted, temporary = shlex.quote(path), shlex.quote(f"{path}.flotilla-new")
        self.run(
            host,
            f"umask 077 && base64 -d > {temporary} && chmod {mode:o} {temporary} "
            f"&& mv {temporary} {quoted}",
            sudo=True,
            stdin=base64.b64encode(content).decode(),
        )

    def stream(self, host: Host | str, command: str, *, sudo: bool = False) -> paramiko.Channel:
        """A running command as a socket: what is sent is its input, what is received its output.

        The caller sets time limits on the channel and closes it. Raises Unreachable.
        """
        target = self._snapshot.host(host) if isinstance(host, str) else host
        channel = self._session(target)
        with _unreachable(target, f"starting {_short(command)}"):
            prefix = "exec sudo -n " if sudo else "exec "
            channel.exec_command(f"{prefix}sh -c {shlex.quote(command)}")
        return channel

    def connection(self, host: Host | str) -> fabric.Connection:
        """The open Fabric connection to a host, shared by all threads. Raises Unreachable."""
        target = self._snapshot.host(host) if isinstance(host, str) else host
        bastion = gateway(self._snapshot.hosts)
        if bastion is None:
            raise Unreachable(
                f"{target.name}: there is no running bastion with a public address to go through",
                next="fab fleet.status",
            )
        through = None
        if target.instance_id != bastion.instance_id:
            through = self._opened(bastion, bastion.public_ip, None)
        return self._opened(target, target.private_ip if through else target.public_ip, through)

    def _opened(
        self, host: Host, address: str | None, through: fabric.Connection | None
    ) -> fabric.Connection:
        with self._guard:
            lock = self._locks[host.instance_id]
        # One at a time for a host: Fabric's open() is not safe for threads, and all of them open
        # the bastion first.
        with lock:
            connection = self._connections.get(host.instance_id)
            if connection is None or connection.gateway is not through:
                connection = self._new(host, address, through)
                with self._guard:
                    self._connections[host.instance_id] = connection
            if not connection.is_connected:
                # All of it: a server that is just booting may hang up as soon as it has answered.
                with _unreachable(host, "while connecting"):
                    connection.open()
                    # Fabric opens the way through without a time limit; paramiko's is an hour.
                    connection.transport.channel_timeout = self._seconds
                    connection.transport.set_keepalive(5)
                    if through is None:
                        _tune(connection.transport.sock)
            return connection

    def _new(
        self, host: Host, address: str | None, through: fabric.Connection | None
    ) -> fabric.Connection:
        keys = self._keys.get(host.instance_id)
        if not address or not keys:
            raise Unreachable(
                f"{host.name}: {'its host key is not known' if address else 'it has no address'}",
                why="a host that cannot prove who it is, is not connected to",
                next="fab fleet.status",
            )
        seconds = self._seconds
        connection = Through(
            address,
            user=self._settings.ssh.user,
            port=self._port,
            gateway=through,
            connect_timeout=math.ceil(seconds),
            # Neither the operator's ~/.ssh/config nor their agent takes part.
            config=fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig()),
            connect_kwargs={
                "key_filename": str(self._settings.path(self._settings.ssh.key_file)),
                "allow_agent": False,
                "look_for_keys": False,
                "banner_timeout": seconds,
                "auth_timeout": seconds,
            },
        )
        # Fabric would accept any key it has not seen.
        connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        known = connection.client.get_host_keys()
        name = address if self._port == 22 else f"[{address}]:{self._port}"
        for key in keys:
            entry = HostKeyEntry.from_line(f"{address} {key}")
            if entry and entry.key:
                known.add(name, entry.key.get_name(), entry.key)
        return connection

    def _session(self, host: Host) -> paramiko.Channel:
        """A session on an open connection, or on a new one where that turns out to be dead.

        Nothing has been run yet at this point, so trying again does nothing twice.
        """
        was_open = host.instance_id in self._connections
        connection = self.connection(host)
        try:
            with _unreachable(host, "while opening a session"):
                return self._ask(connection)
        except Unreachable:
            if not was_open:
                raise
        connection.close()
        with _unreachable(host, "while opening a session"):
            return self._ask(self.connection(host))

    def _ask(self, connection: fabric.Connection) -> paramiko.Channel:
        channel: paramiko.Channel = connection.transport.open_session(timeout=self._seconds)
        return channel


def _tune(tcp: socket.socket) -> None:
    # A session is several small messages, and Nagle's algorithm holds each back until the one
    # before is acknowledged: 48 ms a command, 11 ms without it.
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A bastion that is gone is noticed after 15 s, not after the quarter of an hour TCP takes.
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
    if user_timeout is not None:
        tcp.setsockopt(socket.IPPROTO_TCP, user_timeout, 15_000)


def _bounded(command: str, *, sudo: bool, seconds: float, fed: bool) -> str:
    """The command with its time limit, and an end that no input of ours can come after.

    A host closes a session when its command has ended. paramiko answers that on its own thread,
    while ours may be about to send input, or its end; sshd ends the whole connection when it is
    sent anything for a session that was closed ("ieof packet referred to nonexistent channel"), and
    the bastion's connection carries all others. So no input is sent where there is none, and what a
    command leaves of its input is read before the session ends.
    """
    prefix = "sudo -n " if sudo else ""
    bounded = f"{prefix}timeout -k 5 {seconds:g} sh -c {shlex.quote(command)}"
    return f"{bounded}; rc=$?; cat >/dev/null; exit $rc" if fed else f"{bounded} </dev/null"


def _talk(channel: paramiko.Channel, stdin: bytes, deadline: float) -> tuple[str, str, int]:
    """Feed a command and read it to its end.

    Not by Fabric's run(): invoke hands over input one character in 10 ms, and 2 kB of SQL is 20 s.
    """
    if stdin:
        threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
    out, err = bytearray(), bytearray()
    while not (channel.exit_status_ready() and channel.eof_received):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        if channel.eof_received:
            # A program may close its output and work on: then only its exit is left to come.
            channel.status_event.wait(min(left, 0.5))
        else:
            select.select([channel], [], [], min(left, 0.5))
        _drain(channel, out, err)
        if channel.closed:
            break
    _drain(channel, out, err)
    rc = channel.recv_exit_status()
    return out.decode(errors="replace"), err.decode(errors="replace"), rc


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> None:
    while channel.recv_ready():
        out += channel.recv(_CHUNK)
    while channel.recv_stderr_ready():
        err += channel.recv_stderr(_CHUNK)


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    try:
        channel.sendall(stdin)
        channel.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        pass  # the connection is gone, which whoever reads the answer is told


@contextmanager
def _unreachable(host: Host, doing: str) -> Iterator[None]:
    try:
        yield
    except paramiko.BadHostKeyException as error:
        raise Unreachable(
            f"{host.name}: it showed another host key than its console printed ({error})",
            why="something else answers at its address",
            untouched="Nothing was sent to it",
            next="fab fleet.status",
        ) from error
    except paramiko.AuthenticationException as error:
        raise Unreachable(f"{host.name}: it refuses the operator's SSH key ({error})") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"{host.name}: no answer {doing} ({reason})") from error


def _short(command: str) -> str:
    line = " ".join(command.split())
    return f"`{line if len(line) <= 80 else line[:77] + '...'}`"

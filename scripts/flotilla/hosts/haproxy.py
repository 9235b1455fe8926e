"""HAProxy at the edge: its runtime socket, with answers that are believed only when they are right.

HAProxy's socket has no status codes: a refusal is a line of text among other text, and a command
that did what it should answers nothing at all. So a command that answers anything has failed, and
every table is parsed by its own header. Works on 2.6 and newer.
"""

from __future__ import annotations

import csv
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from flotilla.errors import HostFailed, Refused, Unreachable
from flotilla.rules.rotation import Counters, Server

SOCKET = "/run/haproxy/admin.sock"
# A line on the socket is at most one buffer (16 kB); 100 `set server` commands take some 5 kB.
BATCH = 100
ANSWER_SECONDS = 5.0
_AGGREGATES = frozenset({"FRONTEND", "BACKEND"})

Ask = Callable[[str], str]
Row = Mapping[str, str]


class Output(Protocol):
    """What a command wrote."""

    @property
    def stdout(self) -> str:
        """All of it."""


class Runner(Protocol):
    """What this module asks of SSH; `flotilla.hosts.ssh.Runner` is one."""

    def run(self, host: str, command: str, *, sudo: bool, stdin: str, seconds: float) -> Output:
        """Run ``command`` on ``host``. Raises Unreachable, or HostFailed when it fails."""


def over_ssh(runner: Runner, host: str, path: str = SOCKET) -> Ask:
    """Ask the socket at ``path`` on another host: one SSH command for each question."""
    command = f"socat -t{ANSWER_SECONDS:g} - UNIX-CONNECT:{path}"
    return lambda text: (
        runner.run(host, command, sudo=True, stdin=text, seconds=ANSWER_SECONDS).stdout
    )


def local(path: Path) -> Ask:
    """Ask a socket on this machine. Raises OSError; a timeout is one."""

    def ask(text: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(path))
            connection.sendall(text.encode())
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode(errors="replace")

    return ask


class Runtime:
    """One HAProxy process. Safe to use from threads if ``ask`` is."""

    def __init__(self, name: str, ask: Ask) -> None:
        self.name = name
        self._ask = ask

    def command(self, *commands: str) -> None:
        """Give commands that change something, in order.

        Raises HostFailed with what HAProxy said when it said anything; commands of the same call
        before and after the refused one have been carried out, so read the state again.
        """
        for batch in _batches(commands):
            line = "; ".join(batch)
            if said := self._send(line).strip():
                raise HostFailed(
                    f"{self.name}: HAProxy answered {said.splitlines()[0]!r} to {line!r}",
                    why="a runtime command that worked answers nothing",
                )

    def set_state(self, server: str, *states: str, backend: str = "app") -> None:
        """Give one server several states in one line: ``state drain``, ``health down``."""
        self.command(*(f"set server {backend}/{server} {state}" for state in states))

    def stat(self, backend: str | None = None) -> list[dict[str, str]]:
        """The rows of ``show stat``, all or of one proxy; columns by HAProxy's own names."""
        return parse_stat(
            self._send(f"show stat {backend} -1 -1" if backend else "show stat"), self.name
        )

    def servers(self, backend: str = "app") -> dict[str, Server]:
        """The servers of a backend by name. Raises HostFailed when there is no such backend."""
        rows = self.stat(backend)
        if not rows:
            raise HostFailed(f"{self.name}: HAProxy has no backend {backend!r}")
        return {row["svname"]: as_server(row) for row in rows if row["svname"] not in _AGGREGATES}

    def counters(self, backend: str = "app") -> Counters:
        """What the backend has counted since its process started."""
        row = self._backend(backend)
        return Counters(
            requests=_number(row, "req_tot"),
            errors=_number(row, "hrsp_5xx"),
            aborted=_number(row, "srv_abrt"),
            retried=_number(row, "wretr"),
            redispatched=_number(row, "wredis"),
        )

    def is_sticky(self, backend: str = "app") -> bool:
        """Whether clients are kept on a server by a cookie: draining such a server never ends."""
        return bool(self._backend(backend).get("cookie"))

    def states(self, backend: str = "app") -> dict[str, int]:
        """``srv_admin_state`` of each server, from ``show servers state``."""
        return parse_states(self._send(f"show servers state {backend}"), self.name)

    def info(self) -> dict[str, str]:
        """``show info``: ``Version``, ``Uptime_sec``, ``Pid`` and many more."""
        text = self._send("show info")
        pairs = (line.partition(": ") for line in text.splitlines())
        found = {key: value for key, colon, value in pairs if colon}
        if "Version" not in found:
            raise HostFailed(f"{self.name}: not an answer to 'show info': {text[:80]!r}")
        return found

    def demand_admin(self) -> None:
        """Refuse a socket that lists servers but cannot change them."""
        level = self._send("show cli level").strip()
        if level != "admin":
            raise Refused(
                f"{self.name}: the runtime socket is at level {level!r}, not 'admin'",
                why="commands would be answered 'Permission denied' in the middle of a deploy",
                untouched="Nothing was changed",
                next="fab fleet.configure, which sets `stats socket ... level admin`",
            )

    def _backend(self, backend: str) -> dict[str, str]:
        row = next((row for row in self.stat(backend) if row["svname"] == "BACKEND"), None)
        if row is None:
            raise HostFailed(f"{self.name}: HAProxy has no backend {backend!r}")
        return row

    def _send(self, line: str) -> str:
        try:
            return self._ask(line + "\n")
        except OSError as error:
            raise Unreachable(
                f"{self.name}: HAProxy's runtime socket does not answer ({error})",
                next=f"fab fleet.logs {self.name}",
            ) from error


def parse_stat(text: str, name: str = "HAProxy") -> list[dict[str, str]]:
    """The rows of ``show stat``. Raises HostFailed when the text is anything else."""
    if not text.startswith("# pxname,"):
        raise HostFailed(f"{name}: not an answer to 'show stat': {text[:80]!r}")
    rows = list(csv.DictReader(text.removeprefix("# ").rstrip("\n").splitlines()))
    if any(None in row.values() for row in rows):
        raise HostFailed(f"{name}: the answer to 'show stat' is cut short")
    return [{key: value for key, value in row.items() if key} for row in rows]


def as_server(row: Row) -> Server:
    """A server's row of ``show stat`` as the rules read it."""
    return Server(
        name=row["svname"],
        status=row["status"],
        check=row.get("check_status", "").removeprefix("* "),
        sessions=_number(row, "scur"),
        queued=_number(row, "qcur"),
        weight=_number(row, "weight"),
        address=row.get("addr", ""),
    )


def parse_states(text: str, name: str = "HAProxy") -> dict[str, int]:
    """Server and its ``srv_admin_state`` bits from the text of ``show servers state``."""
    lines = [line for line in text.splitlines() if line.strip()]
    header = next((line for line in lines if line.startswith("# be_id")), None)
    if header is None:
        raise HostFailed(f"{name}: not an answer to 'show servers state': {text[:80]!r}")
    columns = header.removeprefix("# ").split()
    rows = (dict(zip(columns, line.split(), strict=False)) for line in lines)
    return {row["srv_name"]: int(row["srv_admin_state"]) for row in rows if _is_data(row)}


def _is_data(row: Row) -> bool:
    return row.get("be_id", "").isdigit() and "srv_admin_state" in row


def _number(row: Row, key: str) -> int:
    return int(row.get(key) or 0)


def _batches(commands: Iterable[str]) -> Iterator[list[str]]:
    pending = list(commands)
    for start in range(0, len(pending), BATCH):
        yield pending[start : start + BATCH]

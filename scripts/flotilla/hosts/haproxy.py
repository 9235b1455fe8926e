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
from flotilla.rules import lb_certificate
from flotilla.rules.capacity import Load
from flotilla.rules.lb_certificate import Certificate
from flotilla.rules.rotation import Counters, Server
from flotilla.rules.soak import Sample

SOCKET = "/run/haproxy/admin.sock"
# A line on the socket is at most one buffer (16 kB); 100 `set server` commands take some 5 kB.
BATCH = 100
# Five commands add a server; with its options they take some 340 bytes.
ADD_BATCH = 5 * 40
REGISTERED, DELETED = "New server registered.", "Server deleted."
ANSWER_SECONDS = 5.0
_AGGREGATES = frozenset({"FRONTEND", "BACKEND"})
_ANSWERS = ("1xx", "2xx", "3xx", "4xx", "5xx", "other")

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
    """One HAProxy process. Safe to use from threads if ``ask`` is.

    ``master`` asks the process that starts workers; without one no reload can be seen.
    """

    def __init__(
        self,
        name: str,
        ask: Ask,
        master: Ask | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._ask = ask
        self._master = master
        self._guard = guard

    def guarded(self, check: Callable[[], None]) -> Runtime:
        """The same process; ``check`` is called before every change and may raise to forbid it."""
        return Runtime(self.name, self._ask, self._master, check)

    def command(self, *commands: str) -> None:
        """Give commands that change something, in order.

        Raises HostFailed with what HAProxy said when it said anything; commands of the same call
        before and after the refused one have been carried out, so read the state again.
        """
        for batch in _batches(commands):
            line = "; ".join(batch)
            self._guard()
            if said := self._send(line).strip():
                raise HostFailed(
                    f"{self.name}: HAProxy answered {said.splitlines()[0]!r} to {line!r}",
                    why="a runtime command that worked answers nothing",
                )

    def set_state(self, server: str, *states: str, backend: str = "app") -> None:
        """Give one server several states in one line: ``state drain``, ``health down``."""
        self.command(*(f"set server {backend}/{server} {state}" for state in states))

    def set_states(self, states: Mapping[str, Iterable[str]], backend: str = "app") -> None:
        """``set_state`` for many servers, a hundred commands on a connection."""
        self.command(
            *(f"set server {backend}/{name} {one}" for name, many in states.items() for one in many)
        )

    def cut_sessions(self, server: str, backend: str = "app") -> None:
        """End every session on a server at once: clients in the middle of one see it broken off."""
        self.command(f"shutdown sessions server {backend}/{server}")

    def add(self, servers: Mapping[str, str], *, backend: str = "app") -> str:
        """Add servers and admit them; what HAProxy said against it.

        ``servers`` is by name the address, port and options, as in a file: they inherit nothing
        from a ``default-server``. An answer other than "" means that some were refused: read back
        which. A server is added and admitted by one line, so that whoever is killed here leaves
        none behind in maintenance.
        """
        self._guard()
        wanted = [
            command
            for name, text in servers.items()
            for command in (f"add server {backend}/{name} {text}", *_admission(name, backend))
        ]
        said = "".join(self._send("; ".join(batch)) for batch in _batches(wanted, ADD_BATCH))
        lines = (line.strip() for line in said.splitlines())
        return "; ".join(sorted({line for line in lines if line and line != REGISTERED}))

    def admit(self, *servers: str, backend: str = "app") -> None:
        """Let servers come up by their own fresh checks, from whatever state they are in."""
        self.command(*(command for one in servers for command in _admission(one, backend)))

    def delete(self, server: str, *, backend: str = "app") -> str:
        """Put a server into maintenance and delete it; why HAProxy would not yet, or "".

        It refuses while connections are open, idle ones of its own pool too: ask again later.
        """
        self.set_state(server, "state maint", backend=backend)
        said = self._send(f"del server {backend}/{server}").strip()
        return "" if said in {"", DELETED} else said

    def dump(self) -> str:
        """``show servers state`` of all backends, as a state file has it."""
        text = self._send("show servers state")
        parse_states(text, self.name)
        return text

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

    def load(self, backend: str = "app") -> Load:
        """What it carries, the most it ever carried, and what each server takes at once."""
        rows = {row["svname"]: row for row in self.stat(backend)}
        whole = rows.get("BACKEND", {})
        return Load(
            sessions=_number(whole, "scur"),
            most_sessions=_number(whole, "smax"),
            rate=_number(whole, "rate"),
            most_rate=_number(whole, "rate_max"),
            uptime_seconds=int(self.info().get("Uptime_sec", 0)),
            limits={n: _number(row, "slim") for n, row in rows.items() if n not in _AGGREGATES},
        )

    def samples(self, backend: str = "app") -> dict[str, Sample]:
        """By server: what it has answered, and how its checks went, since the process started."""
        rows = self.stat(backend)
        return {row["svname"]: as_sample(row) for row in rows if row["svname"] not in _AGGREGATES}

    def shares(self, backend: str = "app") -> dict[str, float]:
        """By server: the percentage of its configured weight that it has now."""
        rows = state_rows(self._send(f"show servers state {backend}"), self.name)
        return {
            row["srv_name"]: 100 * int(row["srv_uweight"]) / max(1, int(row["srv_iweight"]))
            for row in rows
        }

    def old_workers(self) -> int:
        """Processes of earlier configurations that still serve; no command of ours reaches them."""
        if self._master is None:
            return 0
        return parse_old_workers(self._send("show proc", self._master), self.name)

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

    def certificates(self) -> tuple[Certificate, ...]:
        """Those that it serves."""
        files = lb_certificate.files(self._send("show ssl cert"))
        found = (lb_certificate.certificate(self._send(f"show ssl cert {one}")) for one in files)
        return tuple(filter(None, found))

    def load_certificate(self, file: str, text: str) -> None:
        """Have it serve a PEM text in place of what it read from ``file``; no connection is cut.

        The text has no empty line: that would end it. Raises HostFailed with the old one served.
        """
        self._guard()
        said = self._send(f"set ssl cert {file} <<\n{text}")
        if "ransaction" in said:
            said = self._send(f"commit ssl cert {file}")
            if "Success!" in said:
                return
            self._send(f"abort ssl cert {file}")
        answer = " ".join(said.split())
        raise HostFailed(f"{self.name}: HAProxy did not take a certificate for {file}: {answer}")

    def map(self, file: str) -> str:
        """``show map``, unparsed: an entry a line, or a sentence where there is no such map."""
        return self._send(f"show map {file}")

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

    def _send(self, line: str, ask: Ask | None = None) -> str:
        try:
            return (ask or self._ask)(line + "\n")
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
    return {row["srv_name"]: int(row["srv_admin_state"]) for row in state_rows(text, name)}


def state_rows(text: str, name: str = "HAProxy") -> list[Row]:
    """The rows of ``show servers state`` by its own column names. Raises HostFailed."""
    lines = [line for line in text.splitlines() if line.strip()]
    header = next((line for line in lines if line.startswith("# be_id")), None)
    if header is None:
        raise HostFailed(f"{name}: not an answer to 'show servers state': {text[:80]!r}")
    columns = header.removeprefix("# ").split()
    rows = (dict(zip(columns, line.split(), strict=False)) for line in lines)
    return [row for row in rows if _is_data(row)]


def as_sample(row: Row) -> Sample:
    """A server's counters from its row of ``show stat``.

    A server's own 5xx are answers it gave; one that broke off or took no connection is counted in
    ``eresp`` and ``econ`` only, so the three add up without counting a request twice.
    """
    broken = _number(row, "eresp") + _number(row, "econ")
    answers = sum(_number(row, f"hrsp_{kind}") for kind in _ANSWERS)
    return Sample(
        requests=answers + broken,
        errors=_number(row, "hrsp_5xx") + broken,
        time_ms=_number(row, "rtime"),
        failed_checks=_number(row, "chkfail"),
        downs=_number(row, "chkdown"),
    )


def parse_old_workers(text: str, name: str = "HAProxy") -> int:
    """How many workers of earlier configurations still run, from the master's ``show proc``."""
    section, count, known = "", 0, False
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.strip("# ")
            known = True
        elif section == "old workers" and line.split()[1:2] == ["worker"]:
            count += 1
    if not known:
        raise HostFailed(f"{name}: not an answer to 'show proc': {text[:80]!r}")
    return count


def _is_data(row: Row) -> bool:
    return row.get("be_id", "").isdigit() and "srv_admin_state" in row


def _admission(server: str, backend: str) -> list[str]:
    """Leaving maintenance makes a server UP at once, leaving drain does not: so through drain,
    where `health down` throws the old result away. DOWN and enabled, it waits for `rise` passes.
    """
    steps = ("state drain", "health down", "state ready")
    return [
        f"enable health {backend}/{server}",
        *(f"set server {backend}/{server} {step}" for step in steps),
    ]


def _number(row: Row, key: str) -> int:
    return int(row.get(key) or 0)


def _batches(commands: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    pending = list(commands)
    for start in range(0, len(pending), size):
        yield pending[start : start + size]

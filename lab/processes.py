"""The processes of one host, seen from the machine it runs on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_UNIT = re.compile(r"[^/]+\.(?:service|scope)(?=/|$)")


@dataclass(frozen=True, slots=True)
class Process:
    """`pid` is the machine's number for it; `unit` the systemd unit in the host, "" outside any."""

    pid: int
    command: str
    unit: str


def of_host(first_pid: int, proc: Path = Path("/proc")) -> list[Process]:
    """Every process of the host whose PID 1 the machine knows as `first_pid`, but that one."""
    namespace = (proc / str(first_pid) / "ns/pid").readlink()
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) == first_pid:
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            if (entry / "ns/pid").readlink() == namespace:
                found.append(_read(entry))
    return sorted(found, key=lambda process: process.pid)


def chosen(
    processes: Iterable[Process], *, unit: str | None = None, pattern: str | None = None
) -> list[Process]:
    """Those of a systemd unit ("mysql" or "mysql.service"), or whose command line `pattern` finds.

    Raises ValueError when neither or both are given, or the pattern is no regular expression.
    """
    if bool(unit) is bool(pattern):
        raise ValueError("say which process: unit=NAME or pattern=REGEX (of its command line)")
    if unit:
        name = unit if "." in unit else f"{unit}.service"
        return [process for process in processes if process.unit == name]
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    return [process for process in processes if wanted.search(process.command)]


def send(processes: Iterable[Process], number: signal.Signals) -> list[Process]:
    """Send a signal; returns those that were still there to get it."""
    reached = []
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
            reached.append(process)
    return reached


def holding(processes: Iterable[Process], path: str) -> list[Process]:
    """Those that have a file open at or under `path`, as the host names it."""
    inside = path.rstrip("/") + "/"
    # The kernel names a file of another mount namespace from that namespace's own root.
    return [
        process
        for process in processes
        if any((name + "/").startswith(inside) for name in _open_files(process.pid))
    ]


def _open_files(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(str(link.readlink()))
    return names


def _read(entry: Path) -> Process:
    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    units = _UNIT.findall((entry / "cgroup").read_text())
    name = command or f"[{(entry / 'comm').read_text().strip()}]"
    return Process(int(entry.name), name, units[-1] if units else "")

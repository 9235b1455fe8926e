"""Start, stop and ask the lab process, from the operator's side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab import preflight
from lab.console import plain
from lab.errors import LabError, NoSuchHost, NotUp, Unmet
from lab.layout import API_PORT, Layout
from lab.namespace import UNSHARE

ENDPOINT = f"http://127.0.0.1:{API_PORT}"
_DOWN_SECONDS = 60.0
# The first start builds the base image.
_START_SECONDS = 600.0

Tell = Callable[[Mapping[str, Any]], None]


def ask(
    verb: str, body: Mapping[str, Any] | None = None, *, timeout: float = 60.0
) -> dict[str, Any]:
    """Call one of the lab's control paths: GET without a body, POST with one.

    Raises `NotUp` when no lab answers, `LabError` with the lab's own words when it refuses.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{ENDPOINT}/_lab/{verb}", data=data)  # noqa: S310  always http, always here
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            read: dict[str, Any] = json.load(answer)
            return read
    except urllib.error.HTTPError as error:
        said = json.loads(error.read() or b"{}").get("error", str(error))
        wrong = error.code == 400
        refused = LabError(f"the lab refused {verb}: {said}", why="Nothing was changed" * wrong)
        refused.exit_code = 5 if wrong else 1
        raise refused from error
    except OSError as error:
        raise NotUp(f"no lab answers at {ENDPOINT} ({error})", next_command="fab lab.up") from error


def up(where: Layout, tell: Tell) -> dict[str, Any]:
    """Start the lab unless it is up; returns `{"already": bool, "seconds": float, ...status}`.

    `tell` gets each step as `{"step": text, "seconds": float}`.
    """
    began = time.monotonic()
    preflight.sbin()
    preflight.check(where)
    while True:
        found = _running(where, tell)
        if found is not None:
            where.write_credentials()
            return {"already": True, "seconds": 0.0, **found}
        process, reader = _spawn(where)
        try:
            _wait_ready(reader, where, tell)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait(_DOWN_SECONDS)
            raise
        except LabError as error:
            # It may hold the lock for a moment longer, and is nobody else: one that found a port
            # taken was waited for, by asking at that very port (a minute, then exit 0).
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_DOWN_SECONDS)
            # Somebody else may have been faster.
            if error.exit_code != Unmet.exit_code or preflight.owner(where) is None:
                raise
            continue
        return {"already": False, "seconds": round(time.monotonic() - began, 2), **ask("status")}


def _running(where: Layout, tell: Tell) -> dict[str, Any] | None:
    """Status of the lab that is up; None when there is none.

    One that starts or ends just now is waited for. Raises `Unmet` for another checkout's.
    """
    deadline = time.monotonic() + _START_SECONDS
    said = False
    while (owner := preflight.owner(where)) is not None:
        _demand_own(where, owner)
        with contextlib.suppress(NotUp):
            return ask("status")
        if time.monotonic() > deadline:
            raise LabError(
                f"the lab (process {owner.pid}) has neither come up nor ended in "
                f"{_START_SECONDS:g} s; its log is {where.log / 'daemon.log'}",
                next_command="fab lab.down",
            )
        if not said:
            tell({"step": "waiting for a lab that starts or ends just now", "seconds": 0.0})
            said = True
        time.sleep(0.2)
    return None


def down(where: Layout) -> list[str]:
    """Stop the lab and remove everything of it; returns what a crash had left, if it had."""
    preflight.sbin()
    preflight.root()
    owner = preflight.owner(where)
    if owner is not None:
        _demand_own(where, owner)
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGTERM)
        _wait_gone(owner.pid)
    argv = [*UNSHARE, sys.executable, "-m", "lab.clean"]
    done = subprocess.run(
        argv, cwd=where.repo, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise LabError(
            f"clean-up failed: {done.stderr.strip()[-800:]}", next_command="fab lab.down"
        )
    found: list[str] = json.loads(done.stdout)
    return found


def find_host(status: Mapping[str, Any], named: str) -> dict[str, Any]:
    """The instance with this id or tag Name that has not been terminated.

    Raises `NoSuchHost` listing what there is.
    """
    rows = [
        row for row in status["instances"] if row["state"] not in ("terminated", "shutting-down")
    ]
    matching: list[dict[str, Any]] = [row for row in rows if named in (row["id"], row["name"])]
    if len(matching) == 1:
        return matching[0]
    if matching:
        ids = ", ".join(row["id"] for row in matching)
        raise NoSuchHost(
            f"{len(matching)} hosts are called {named}; name one by its id: {ids}",
            next_command="fab lab.status",
        )
    known = ", ".join(sorted({str(row["name"] or row["id"]) for row in rows})) or "none"
    raise NoSuchHost(
        f"no host is called {named}; there are: {known}", next_command="fab lab.status"
    )


def shell_argv(row: Mapping[str, Any]) -> list[str]:
    """The command that opens a root shell in a host without its sshd.

    Raises `LabError` when the host does not run.
    """
    if not row["pid"]:
        raise LabError(f"{row['name'] or row['id']} is {row['state']}: there is nothing to enter")
    enter = ["nsenter", "-t", str(row["pid"]), "-m", "-u", "-i", "-n", "-p", "-C"]
    return [
        *enter,
        "--",
        "env",
        "-i",
        f"TERM={os.environ.get('TERM', 'dumb')}",
        "HOME=/root",
        "bash",
        "-l",
    ]


def console(row: Mapping[str, Any]) -> str:
    """What a host printed on its console."""
    path = Path(row["console"])
    return plain(path.read_text(errors="replace").splitlines()) if path.exists() else ""


def _demand_own(where: Layout, owner: preflight.Owner) -> None:
    if owner.repo != where.repo:
        raise Unmet(
            f"another lab runs on this machine, from {owner.repo}",
            why="there is one set of addresses; nothing was changed",
            next_command=f"cd {owner.repo} && fab lab.down",
        )


def _spawn(where: Layout) -> tuple[subprocess.Popen[bytes], int]:
    """Start the lab process; returns it and the descriptor its progress can be read from."""
    where.log.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    with (where.log / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            [*UNSHARE, sys.executable, "-m", "lab.server", str(writer)],
            cwd=where.repo,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(where.repo)},
        )
    os.close(writer)
    return process, reader


def _wait_ready(reader: int, where: Layout, tell: Tell) -> None:
    with os.fdopen(reader) as lines:
        for line in lines:
            said = json.loads(line)
            if said.get("ready"):
                return
            if "error" in said:
                error = LabError(said["error"])
                error.exit_code = int(said["exit_code"])
                raise error
            tell(said)
    log = where.log / "daemon.log"
    last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise LabError(f"the lab process ended before it was ready; the end of {log}:\n{last}")


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + _DOWN_SECONDS
    while _lives(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def log_files(where: Layout) -> list[Path]:
    """The lab's logs, for messages that point at them."""
    return [where.log / "daemon.log", where.log / "lab.jsonl", where.log / "api.jsonl"]

#!/usr/bin/env python3
"""Change how people log in, so that nobody can be locked out: what a login has not proved goes.

Roles write what sshd and PAM are to read below /var/lib/flotilla/sshd/staged, each file under its
own path. ``begin`` puts it in place, reloads sshd and arms a timer; ``confirm`` keeps it, and only
from a login that began after that; else the timer puts back what was there. A reboot in between
does so too.

Exit 0 done or nothing to do, 1 it could not be done and what was there is in place.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path("/var/lib/flotilla/sshd")
STAGED = HOME / "staged"
SAVED = HOME / "saved"
# There while a change waits for its proof: which files it changed.
PENDING = HOME / "pending.json"
# There while a proof is taken: since when logins are one, in seconds since boot. A way back removes
# it first, for which a full disk has room.
PROVABLE = HOME / "provable"
UNIT = "flotilla-sshd-revert"
TOOL = "/usr/local/sbin/flotilla-sshd"
# sshd starts itself anew some milliseconds after it was told to; logins before are the old one's.
SETTLE_SECONDS = 1.0
# A host that shuts somebody out for longer than this needs another way in.
MOST_SECONDS = 3600
SESSION = "sshd-session"


class RefusedError(Exception):
    """Why it was not done, in one sentence."""


def differing() -> list[Path]:
    """Files whose staged text is not the one in place, by their path from the root."""
    staged = sorted(path for path in STAGED.rglob("*") if path.is_file())
    found = [path.relative_to(STAGED) for path in staged]
    return [path for path in found if _content(STAGED / path) != _content(Path("/") / path)]


def begin(seconds: int) -> dict[str, Any]:
    """Put the staged files in place, to be taken back after ``seconds`` unless confirmed."""
    if not 1 <= seconds <= MOST_SECONDS:
        raise RefusedError(f"--seconds is {seconds}: it must be 1 to {MOST_SECONDS}")
    if PENDING.exists():
        revert(reload=True)
    files = differing()
    if not files:
        return {"changed": False, "files": []}
    _save(files)
    try:
        _arm(seconds)
        _install(files)
        _check()
        _run("systemctl", "reload", "ssh.service")
    except (RefusedError, OSError) as error:
        try:
            revert(reload=True)
        except (RefusedError, OSError) as worse:
            raise RefusedError(f"{error}. {worse}. Next: {TOOL} revert") from error
        raise RefusedError(f"{error}. What was there is in place again.") from error
    time.sleep(SETTLE_SECONDS)
    PROVABLE.write_text(f"{since_boot()}\n")
    return {"changed": True, "files": [f"/{path}" for path in files], "seconds": seconds}


def place() -> dict[str, Any]:
    """Put the staged files in place for the next boot: on a host that becomes an image."""
    if PENDING.exists():
        revert(reload=False)
    files = differing()
    _save(files)
    try:
        _install(files)
        _check()
    except (RefusedError, OSError) as error:
        revert(reload=False)
        raise RefusedError(f"{error}. What was there is in place again.") from error
    _forget()
    return {"changed": bool(files), "files": [f"/{path}" for path in files]}


def confirm(login: float | None) -> dict[str, Any]:
    """Keep the change; ``login`` is when the asking login began, in seconds since boot."""
    if not PENDING.exists():
        raise RefusedError("no change waits: it was put back, or never begun")
    files = _read_pending()
    if login is None:
        raise RefusedError("this is no login over SSH, which is what has to be proved")
    since = _provable_since()
    if since is None:
        raise RefusedError(
            "the change is being taken back, or sshd was not given all of it: it cannot be kept."
            f" Next: {TOOL} revert"
        )
    if login < since:
        raise RefusedError("this login is older than the change and proves nothing: log in anew")
    _forget()
    # It would find nothing to do.
    _disarm()
    return {"confirmed": True, "files": files}


def revert(*, reload: bool, at_boot: bool = False) -> dict[str, Any]:
    """Put back what was there before the last ``begin``; nothing to do once that is confirmed.

    ``at_boot`` sshd is waiting for us, and waiting for it would be for ever; only where an earlier
    attempt failed it runs, and reloads. Raises RefusedError while sshd has not taken it up: what
    calls this tries again.
    """
    if not PENDING.exists():
        return {"reverted": False, "files": []}
    files = _read_pending()
    # Before the first file: kept half-way, it would be the old settings that somebody is told stay.
    PROVABLE.unlink(missing_ok=True)
    _to_disk(HOME)
    for name in files:
        saved, place_ = SAVED / name.lstrip("/"), Path(name)
        if saved.exists():
            _put_back(saved, place_)
        else:
            place_.unlink(missing_ok=True)
        if place_.parent.is_dir():
            _to_disk(place_.parent)
    if reload:
        # Also when it has ended, of settings that it could not read.
        try:
            _run("systemctl", "reload-or-restart", "ssh.service")
        except RefusedError as error:
            raise RefusedError(
                f"What was there is in place again, and sshd has not taken it up: {error}"
            ) from error
    elif at_boot:
        _run("systemctl", "--no-block", "try-reload-or-restart", "ssh.service")
    _forget()
    return {"reverted": True, "files": files}


def since_boot() -> float:
    """Now, as /proc counts the time of processes: in seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def login_began(process: int, proc: Path = Path("/proc")) -> float | None:
    """When the login that ``process`` belongs to was accepted; None when it belongs to none.

    sshd has one process a connection from its first byte on, and all of a login descends from it.
    """
    began = None
    while process > 1:
        try:
            text = (proc / str(process) / "stat").read_text()
        except OSError:
            break
        # The name is in parentheses and may hold anything.
        name, _, rest = text.partition("(")[2].rpartition(") ")
        fields = rest.split()
        if name == SESSION:
            began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        process = int(fields[1])
    return began


def _content(path: Path) -> tuple[bytes, int] | None:
    try:
        return path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _save(files: list[Path]) -> None:
    PROVABLE.unlink(missing_ok=True)
    shutil.rmtree(SAVED, ignore_errors=True)
    for path in files:
        there = Path("/") / path
        if there.exists():
            (SAVED / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(there, SAVED / path)
    # On the disk before the first file is replaced: a reboot puts back what it names.
    os.sync()
    fresh = PENDING.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(json.dumps({"files": [f"/{path}" for path in files]}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(PENDING)
    _to_disk(HOME)


def _install(files: list[Path]) -> None:
    for path in files:
        _replace(STAGED / path, Path("/") / path)


def _read_pending() -> list[str]:
    try:
        return [str(name) for name in json.loads(PENDING.read_text())["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{PENDING} cannot be read, so nothing was changed: compare what {SAVED} holds with"
            f" what is in place, put it back by hand, reload ssh, and remove {PENDING}"
        ) from error


def _provable_since() -> float | None:
    try:
        return float(PROVABLE.read_text())
    except (OSError, ValueError):
        return None


def _put_back(saved: Path, target: Path) -> None:
    """Put a saved file back by a link, for which a full disk has room; elsewhere by a copy."""
    fresh = target.with_name(f".{target.name}.flotilla-new")
    try:
        fresh.unlink(missing_ok=True)
        os.link(saved, fresh)
        fresh.replace(target)
        # It is there still when the target was the saved file already.
        fresh.unlink(missing_ok=True)
    except OSError:
        _replace(saved, target)


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # sshd reads *.conf, and this is none until it is whole.
    fresh = target.with_name(f".{target.name}.flotilla-new")
    # What a kill left may be a link to a file in use.
    fresh.unlink(missing_ok=True)
    shutil.copy2(source, fresh)
    os.chown(fresh, 0, 0)
    # Renamed before its text is on the disk, it is empty after a power loss.
    _to_disk(fresh)
    fresh.replace(target)
    _to_disk(*target.parents)


def _to_disk(*paths: Path) -> None:
    """Have files and folders outlive a power loss."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check() -> None:
    done = subprocess.run(["/usr/sbin/sshd", "-t"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"sshd does not take it: {done.stderr.strip()}")


def _arm(seconds: int) -> None:
    _disarm()
    _run(
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={UNIT}",
        f"--on-active={seconds}",
        "--timer-property=AccuracySec=100ms",
        # It is the only way back: one that was killed, or met a full disk, tries again.
        "--property=Restart=on-failure",
        "--property=RestartSec=5",
        TOOL,
        "revert",
    )


def _disarm() -> None:
    units = [f"{UNIT}.timer", f"{UNIT}.service"]
    subprocess.run(["systemctl", "stop", *units], check=False, capture_output=True)


def _forget() -> None:
    PENDING.unlink(missing_ok=True)
    # Else a boot would take back by it what was said to stay, with files that are gone.
    _to_disk(HOME)
    PROVABLE.unlink(missing_ok=True)
    shutil.rmtree(SAVED, ignore_errors=True)


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RefusedError(f"there is no {argv[0]}") from error
    if done.returncode:
        raise RefusedError(f"{argv[0]} failed: {done.stderr.strip() or done.returncode}")


@contextmanager
def _alone() -> Iterator[None]:
    """The timer and an operator at once would each put back half."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Do one of the five."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    beginning = verbs.add_parser("begin", help="put the staged files in place, for a while")
    beginning.add_argument("--seconds", type=int, default=120, help="until they are taken back")
    verbs.add_parser("confirm", help="keep them; from a new login only")
    reverting = verbs.add_parser("revert", help="put back what was there, unless it was confirmed")
    reverting.add_argument("--at-boot", action="store_true", help="before sshd starts")
    verbs.add_parser("differs", help="only say what begin would change")
    verbs.add_parser("place", help="put them in place for the next boot, of an image")
    given = parser.parse_args()
    try:
        with _alone():
            if given.verb == "begin":
                told = begin(given.seconds)
            elif given.verb == "confirm":
                told = confirm(login_began(os.getpid()))
            elif given.verb == "revert":
                told = revert(reload=not given.at_boot, at_boot=given.at_boot)
            elif given.verb == "differs":
                found = [f"/{path}" for path in differing()]
                told = {"changed": bool(found), "files": found}
            else:
                told = place()
    except (RefusedError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

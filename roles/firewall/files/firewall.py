#!/usr/bin/python3
"""Load this host's packet filter, and take it back unless somebody could still log in.

    firewall.py check FILE          would the kernel take it? Nothing is loaded
    firewall.py try --seconds N     load the wanted rules; unless `confirm` comes in N s they go
    firewall.py confirm             keep what is on trial, and load it at every boot
    firewall.py revert              back to what was confirmed last (a timer of `try` calls it)
    firewall.py load                load what was confirmed last (the unit calls it at boot)
    firewall.py off                 no filter until `load`, `try` or the next boot
    firewall.py status              what is in force, as JSON

One table is replaced, ``inet flotilla``, in one transaction: no packet sees half of it, connection
tracking is left alone, and so are the tables of others. Exit 0 done, 1 refused: nothing
was changed.

Invariant: what is loaded at boot was confirmed. A host that loses power while rules are on trial
comes back with the ones before.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import firewall_tell

WANTED = Path("/etc/flotilla/firewall.nft")
CONFIRMED = Path("/var/lib/flotilla/firewall.nft")
RUN = Path("/run/flotilla-firewall")
ME = "/usr/local/lib/flotilla/firewall.py"
REVERT = "flotilla-firewall-revert"
SETTLE = "flotilla-firewall-settle"
TABLE = ("inet", "flotilla")
USERS = re.compile(r"^\s*# metadata_users: ([a-z0-9_ .-]+)$", re.MULTILINE)
# Seconds in which connections from before the first load make themselves known: MySQL's and Redis'
# heartbeats come every 30 s and 2 s.
PICK_UP_SECONDS = 120
# A host that shuts somebody out for longer than this needs another way in.
MOST_SECONDS = 3600
# A connection is known to connection tracking from its first packet on only if tracking was on
# then, and without a filter it is off. While these stand, a packet in its middle makes it known.
PICK_UP = "".join(
    f"insert rule inet flotilla {chain} tcp flags & (fin | syn | rst | ack) != syn ct state new "
    'accept comment "older than this table"\n'
    for chain in ("input", "output")
)


class RefusedError(Exception):
    """Why it was not done, in one line."""


@dataclass(frozen=True)
class State:
    """What was loaded last: a hash of the whole transaction, "" where nobody knows."""

    loaded: str = ""
    trial: bool = False
    picks_up: bool = False  # connections from before the table are let in still


def transaction(text: str) -> str:
    """The text, and the accounts of this host that its first comment names."""
    found = USERS.search(text)
    numbers = set()
    for name in found[1].split() if found else ():
        with contextlib.suppress(KeyError):
            numbers.add(pwd.getpwnam(name).pw_uid)
    if not numbers:
        return text
    listed = ", ".join(map(str, sorted(numbers)))
    return f"{text}add element inet flotilla metadata_users {{ {listed} }}\n"


def digest(text: str) -> str:
    """Names a transaction."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def nft(*arguments: str, text: str = "") -> None:
    """Run nft. Raises RefusedError with the kernel's words; nothing was changed then."""
    done = subprocess.run(
        ["nft", *arguments], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RefusedError(f"nft {' '.join(arguments)}: {' '.join(done.stderr.split())}")


def in_force() -> bool:
    """Whether the kernel has our table. Raises RefusedError when it does not say."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise RefusedError(f"nft list tables: {' '.join(listed.stderr.split())}")
    return " ".join(("table", *TABLE)) in listed.stdout.splitlines()


def read(path: Path) -> str:
    """A file's text; empty where there is none."""
    return path.read_text() if path.exists() else ""


def write(path: Path, text: str) -> None:
    """Replace a file, whole or not at all, and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("w") as target:
        target.write(text)
        target.flush()
        os.fsync(target.fileno())
    fresh.rename(path)
    handle = os.open(path.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def state() -> State:
    """What was loaded last, if the kernel has it still.

    Rules of which nothing can be read are on trial: they go back, and nobody can confirm them.
    """
    if not in_force():
        return State()
    try:
        return State(**json.loads((RUN / "state.json").read_text()))
    except (OSError, ValueError, TypeError):
        return State(trial=True, picks_up=True)


def note(now: State) -> None:
    """Remember what is loaded until the next boot."""
    write(RUN / "state.json", json.dumps(asdict(now)))


def replace(text: str) -> None:
    """Load a transaction, of which nothing is known until ``note``.

    Forgotten before, and not after: killed in between, it leaves rules that the timer takes back.
    """
    # A count that is lost, for whatever reason, is worth less than the way back in.
    with contextlib.suppress(Exception):
        firewall_tell.note(str(RUN))
    (RUN / "state.json").unlink(missing_ok=True)
    nft("-f", "-", text=text)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One at a time: the timer may fire while somebody confirms."""
    RUN.mkdir(parents=True, exist_ok=True)
    with (RUN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def arm(unit: str, seconds: int, verb: str) -> None:
    """Have systemd call us later, in place of an earlier timer of this name."""
    disarm(unit)
    argv = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--on-active={seconds}"]
    # Half a minute of grace, which timers have by default, is too long for who is locked out.
    argv += ["--timer-property=AccuracySec=100ms"]
    # It is the only way back: one that was killed, or met a full disk, tries again.
    argv += ["--property=Restart=on-failure", "--property=RestartSec=5", ME, verb]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"no timer could be set: {' '.join(done.stderr.split())}")


def disarm(unit: str) -> None:
    """Stop a timer, and what it has started; none is fine."""
    units = [f"{unit}.timer", f"{unit}.service"]
    subprocess.run(["systemctl", "stop", *units], capture_output=True, check=False)


def attempt(seconds: int) -> str:
    """Put the wanted rules on trial, unless they are in force and confirmed."""
    if not 1 <= seconds <= MOST_SECONDS:
        raise RefusedError(f"--seconds is {seconds}: it must be 1 to {MOST_SECONDS}")
    text = transaction(read(WANTED))
    now = state()
    known = read(CONFIRMED)
    if now.loaded == digest(text) and not now.trial and known == read(WANTED):
        return "unchanged"
    nft("-c", "-f", "-", text=text)
    try:
        first = now.picks_up or not in_force()
        # The way back first: from the next line on we may be deaf.
        arm(REVERT, seconds, "revert")
        replace(text + PICK_UP if first else text)
        note(State(loaded=digest(text), trial=True, picks_up=first))
        # It would end this trial by loading what was confirmed before. Not sooner: killed in
        # between, nothing would ever end what the rules of before let in for a while.
        disarm(SETTLE)
    except (RefusedError, OSError):
        # Also an earlier trial, whose timer may be gone.
        revert()
        disarm(REVERT)
        raise
    return f"on trial for {seconds} s"


def confirm() -> str:
    """Keep what is on trial. Raises RefusedError when it was taken back already."""
    now = state()
    wanted = read(WANTED)
    if now.loaded != digest(transaction(wanted)):
        raise RefusedError(
            "the rules on trial were taken back, or the wanted ones changed since; what was "
            "confirmed last is in force. Next: the playbook again"
        )
    if not now.trial:
        return "unchanged"
    write(CONFIRMED, wanted)
    if now.picks_up:
        arm(SETTLE, PICK_UP_SECONDS, "load")
    note(State(loaded=now.loaded, picks_up=now.picks_up))
    # Last: whatever ends this half-way is taken back, or found confirmed.
    disarm(REVERT)
    return "confirmed"


def revert() -> str:
    """Back to what was confirmed last; with nothing confirmed, to no filter."""
    if not state().trial:
        return "nothing is on trial"
    if not CONFIRMED.exists():
        return f"nobody confirmed: {off()}"
    try:
        load()
    except (RefusedError, OSError) as reason:
        # The security group still stands before a host without a filter.
        return f"nobody confirmed, and the rules of before cannot be loaded ({reason}): {off()}"
    return "nobody confirmed: the rules of before are back"


def load() -> str:
    """Load what was confirmed last."""
    if not CONFIRMED.exists():
        raise RefusedError(f"{CONFIRMED} is missing: nothing was ever confirmed here")
    text = transaction(read(CONFIRMED))
    if f"table {' '.join(TABLE)}" not in text:
        raise RefusedError(f"{CONFIRMED} has no table of ours in it")
    replace(text)
    # Unknown on a full disk, and so to be proved anew.
    with contextlib.suppress(OSError):
        note(State(loaded=digest(text)))
    return "loaded"


def off() -> str:
    """Take the table away."""
    if in_force():
        replace(f"delete table {' '.join(TABLE)}\n")
    return "no filter"


def status() -> str:
    """What is in force, as JSON."""
    return json.dumps(asdict(state()) | {"in_force": in_force(), "confirmed": CONFIRMED.exists()})


def main() -> int:
    """Do one of them and say how it went; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check").add_argument("file")
    verbs.add_parser("try").add_argument("--seconds", type=int, required=True)
    act = {"confirm": confirm, "revert": revert, "load": load, "off": off, "status": status}
    for name in act:
        verbs.add_parser(name)
    given = parser.parse_args()
    try:
        if given.verb == "check":
            nft("-c", "-f", given.file)
            return 0
        with alone():
            said = attempt(given.seconds) if given.verb == "try" else act[given.verb]()
    except (RefusedError, OSError, UnicodeDecodeError) as reason:
        sys.stderr.write(f"refused: {reason}\n")
        return 1
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

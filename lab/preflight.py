"""What must be so before a lab can start: each check gives a clear error, and nothing has been
changed by then.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import Unmet
from lab.layout import Layout
from lab.namespace import UNSHARE
from lab.run import tried

# Tool and the Debian package that has it.
TOOLS = {
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sysctl": "procps",
}
_IP_FREEBIND = 15  # linux/in.h; Python has no name for it
# A base image, six baked ones and twelve running hosts take some 6 GB.
DISK_GB = 8
# Keys, logs and consoles of a day.
VAR_GB = 0.2


def check(where: Layout) -> None:
    """Raise `Unmet` for the first prerequisite that is missing."""
    root()
    tools(shutil.which(tool) for tool in TOOLS)
    namespaces()
    disk(where.cache)
    disk(where.var, VAR_GB)


def sbin() -> None:
    """Have the directories on PATH where Debian keeps nft and ip's friends, whatever the shell."""
    entries = os.environ.get("PATH", "").split(":")
    missing = [place for place in ("/usr/sbin", "/sbin") if place not in entries]
    os.environ["PATH"] = ":".join([*entries, *missing])


def root() -> None:
    """The lab makes namespaces, bridges and packet filters."""
    if os.geteuid() != 0:
        raise Unmet(
            f"the lab needs root, and this is user id {os.geteuid()}",
            why="it makes network namespaces and boots systemd hosts; nothing was changed",
            next_command='sudo -E env "PATH=$PATH" fab lab.up',
        )


def tools(found: Iterable[str | None]) -> None:
    """Every tool of `TOOLS` is on PATH; `found` has one entry a tool, in order."""
    missing = sorted(
        {package for package, path in zip(TOOLS.values(), found, strict=True) if path is None}
    )
    if missing:
        raise Unmet(
            f"not installed: {', '.join(missing)}",
            why="the lab's hosts run on them; nothing was changed",
            next_command=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


def namespaces() -> None:
    """The kernel and this container, if it is one, let root make namespaces."""
    if not tried([*UNSHARE, "unshare", "--net", "--", "true"]):
        raise Unmet(
            "this machine does not let root make mount and network namespaces",
            why="every host of the lab has its own (a container must be privileged); nothing was"
            " changed",
            next_command="use a machine or virtual machine of your own; make test runs without",
        )


def disk(place: Path, wanted_gb: float | None = None) -> None:
    """There is room: for images and hosts, or for so much."""
    wanted_gb = DISK_GB if wanted_gb is None else wanted_gb
    there = next(p for p in (place, *place.parents) if p.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    if free_gb < wanted_gb:
        elsewhere = "" if wanted_gb < DISK_GB else ", or FLOTILLA_CACHE=<dir> fab lab.up"
        raise Unmet(
            f"{there} has {free_gb:.1f} GB free and the lab wants {wanted_gb} GB",
            why="a full disk breaks hosts half-way; nothing was changed",
            next_command=f"free some space (du -sh {place}){elsewhere}",
        )


def ports(wanted: Mapping[tuple[str, int], str]) -> None:
    """Nobody listens where the lab's parts will; ``wanted`` says by address what each is for.

    Whoever listens on every address of the machine has it everywhere.
    """
    for (address, number), what in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # The address may not be there yet.
            probe.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
            try:
                probe.bind((address, number))
                probe.listen()
            except OSError as error:
                raise Unmet(
                    f"port {number} on {address} is taken ({error.strerror})",
                    why=f"{what} answers there; nothing was changed",
                    next_command=f"ss -ltnp 'sport = :{number}' shows who has it",
                ) from error


def left(where: Layout) -> dict[str, object]:
    """What the running or last lab of this machine wrote for who cleans up; empty without one."""
    try:
        read: dict[str, object] = json.loads(where.state.read_text())
    except (OSError, ValueError):
        return {}
    return read


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that has the machine's lab, and the checkout it runs from."""

    pid: int
    repo: Path


def owner(where: Layout) -> Owner | None:
    """Who holds the machine's lock, by the kernel's word; None when nobody does.

    To try the lock would keep a lab that starts in this moment from having it.
    """
    try:
        inode = str(where.lock.stat().st_ino)
        rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
        # "1: FLOCK  ADVISORY  WRITE 812 00:19:2391 0 EOF", and "1: -> FLOCK ..." for who waits
        held = (row for row in rows if row[1] == "FLOCK" and row[5].endswith(f":{inode}"))
        pid = next(int(row[4]) for row in held)
        return Owner(pid, Path(f"/proc/{pid}/cwd").readlink())
    except (OSError, StopIteration):
        return None

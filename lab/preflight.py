"""What must be so before a lab can start: each check gives a clear error, and nothing has been
changed by then.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from lab.errors import Unmet
from lab.layout import API_PORT, Layout
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
# A base image, six baked ones and twelve running hosts take some 6 GB.
DISK_GB = 8


def check(where: Layout) -> None:
    """Raise `Unmet` for the first prerequisite that is missing."""
    root()
    tools(shutil.which(tool) for tool in TOOLS)
    namespaces()
    disk(where.cache)


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


def disk(cache: Path) -> None:
    """There is room for images and hosts."""
    there = next(p for p in (cache, *cache.parents) if p.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    if free_gb < DISK_GB:
        raise Unmet(
            f"{there} has {free_gb:.1f} GB free and the lab wants {DISK_GB} GB",
            why="a full disk breaks hosts half-way; nothing was changed",
            next_command=f"free some space (du -sh {cache}), or FLOTILLA_CACHE=<dir> fab lab.up",
        )


def port() -> None:
    """Nobody listens where the API will."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", API_PORT))
        except OSError as error:
            raise Unmet(
                f"port {API_PORT} on 127.0.0.1 is taken ({error.strerror})",
                why="the lab's API answers there; nothing was changed",
                next_command=f"ss -ltnp 'sport = :{API_PORT}' shows who has it",
            ) from error


def owner(where: Layout) -> dict[str, object]:
    """What the running or last lab of this machine wrote about itself; empty without one."""
    try:
        read: dict[str, object] = json.loads(where.state.read_text())
    except (OSError, ValueError):
        return {}
    return read


def is_running(where: Layout) -> bool:
    """Whether a lab process holds the machine's lock."""
    if not where.lock.exists():
        return False
    with where.lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

"""A full disk for one directory of one host.

The hosts share one file system, so filling it would fill everybody's. Instead the directory becomes
a file system of its own, in memory, with everything that was in it and no more room than asked for.
Programs that write below it get the kernel's own ENOSPC. Those that had files open there would not
notice: they are named as units, and are restarted onto the full disk and off it again.
A host that stops meanwhile wakes with the directory as it was when the fault began.
"""

from __future__ import annotations

from collections.abc import Sequence

from lab.errors import LabError
from lab.ports import Hosts
from lab.processes import holding, of_host

_SECONDS = 300.0

_FILL = """
set -eu
path=$1 free=$2 aside=$3; shift 3
[ $# -eq 0 ] || systemctl stop "$@"
mkdir -p "$aside"
mount -t tmpfs -o "size=90%,$(stat -c mode=%a,uid=%u,gid=%g "$path")" lab-full-disk "$aside"
cp -a "$path/." "$aside/"
used=$(df --output=used -B1 "$aside" | tail -1)
mount -o "remount,size=$((used + free))" "$aside"
mount --bind "$aside" "$path"
umount "$aside"
rmdir "$aside"
[ $# -eq 0 ] || systemctl start --no-block "$@"
df --output=avail -B1 "$path" | tail -1
"""

# `reset-failed` may fail: it does for a unit that is not loaded, and then nothing is to be reset.
_EMPTY = """
set -eu
path=$1 aside=$2; shift 2
mountpoint -q "$path" || exit 0
# Room first: MySQL waits for it, and cannot be stopped while it waits.
mount -o "remount,size=90%" "$path"
[ $# -eq 0 ] || systemctl stop "$@"
mkdir -p "$aside"
mount --bind "$path" "$aside"
umount "$path" || { umount "$aside"; exit 1; }
find "$path" -mindepth 1 -delete
cp -a "$aside/." "$path/"
umount "$aside"
rmdir "$aside"
# Only a unit that failed can be reset, and not each did.
if [ $# -gt 0 ]; then systemctl reset-failed "$@" || true; systemctl start --no-block "$@"; fi
"""


def fill(
    hosts: Hosts, instance_id: str, path: str, *, free_bytes: int, units: Sequence[str], number: int
) -> int:
    """Make `path` a file system with `free_bytes` left; returns the bytes that are left.

    Raises ValueError when the path cannot be used, LabError when the host could not do it.
    """
    pid = hosts.pid(instance_id)
    if not pid:
        raise ValueError(f"{instance_id} does not run")
    if not path.startswith("/") or path.rstrip("/") == "":
        raise ValueError(f"path={path!r} must be a directory of the host, such as /var/log")
    if hosts.exec(instance_id, ["test", "-d", path]).returncode:
        raise ValueError(f"there is no directory {path} on the host")
    wanted = {name if "." in name else f"{name}.service" for name in units}
    users = [p for p in holding(of_host(pid), path) if p.unit not in wanted]
    if users:
        named = ", ".join(f"{process.command.split()[0]} ({process.unit})" for process in users)
        raise ValueError(
            f"{named} has files open under {path} and would not notice; "
            f"name the units to restart onto the full disk: unit=..."
        )
    said = _shell(hosts, instance_id, _FILL, path, str(free_bytes), _aside(number), *sorted(wanted))
    return int(said.split()[-1])


def empty(hosts: Hosts, instance_id: str, path: str, *, units: Sequence[str], number: int) -> None:
    """Give `path` back its place on the host's disk, with what was written meanwhile.

    Raises LabError when something still has files open there; nothing is lost then.
    """
    named = sorted(name if "." in name else f"{name}.service" for name in units)
    _shell(hosts, instance_id, _EMPTY, path, _aside(number), *named)


def _aside(number: int) -> str:
    return f"/run/lab-full-disk-{number}"


def _shell(hosts: Hosts, instance_id: str, script: str, *args: str) -> str:
    done = hosts.exec(instance_id, ["sh", "-c", script, "sh", *args], timeout=_SECONDS)
    if done.returncode:
        raise LabError(f"{instance_id}: the disk fault failed: {done.stderr.strip()[-400:]}")
    return done.stdout

"""What a database host restores: in its place, beside it for a table, or only to see it done."""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flotilla.agent.backup_host import DATA, SPARE, WORK, Host, no_room, say
from flotilla.agent.sessions import local
from flotilla.backup import restore, shared
from flotilla.backup.contents import contents
from flotilla.backup.restore import Wanted, Way
from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.mysql.record import CLUSTER, Records
from flotilla.rules.gtid import GtidSet

MYSQLD = "/usr/sbin/mysqld"
USER = "mysql"


def find(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """The way to a moment; nothing is touched."""
    return _told(_way(host, options), time.monotonic())


def restore_here(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Build a data directory of that moment, and put it in the place of this host's."""
    started = time.monotonic()
    record = Records(host.table, CLUSTER).read()
    if record and record.instance_id == host.instance_id and not options.even_primary:
        raise Refused(
            f"{host.name} is the primary of term {record.term}",
            "a restore replaces all it has",
            "Nothing was touched",
            "fab mysql.switchover, or restore onto another host",
        )
    way, folder = _built(host, options)
    moved = _swapped(folder / "data")
    return _told(way, started) | {"before": str(moved)}


def extract(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Dump one database or table as it was, into a file on this host; nothing else is changed."""
    started = time.monotonic()
    database, _, table = options.what.partition(".")
    way, folder = _built(host, options)
    target = Path(options.output)
    try:
        with (
            restore.serving(folder, launch),
            target.open("xb") as output,
        ):
            command = ["mysqldump", f"--socket={folder / 'mysqld.sock'}", "--single-transaction"]
            command += ["--set-gtid-purged=OFF", "--triggers", "--routines", database]
            done = subprocess.run(
                [*command, *filter(None, [table])],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode != 0:
        target.unlink()
        raise HostFailed(
            f"{options.what} cannot be dumped: {done.stderr.strip()[-300:]}",
            untouched=f"{host.name} is as it was",
            next="fab backup.extract --help",
        )
    return _told(way, started) | {"file": str(target), "bytes": target.stat().st_size}


def rehearse(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Build what the cluster had, read all of it, and drop it again."""
    started = time.monotonic()
    way, folder = _built(host, options)
    seconds = round(time.monotonic() - started, 1)
    try:
        with restore.serving(folder, launch):
            path = str(folder / "mysqld.sock")
            found = contents(lambda: local(path, "root"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _told(way, started) | {"seconds": seconds, "sums": found.sums}


def held() -> dict[str, Any]:
    """A checksum of every table of this host's server, and the GTID set they are of."""
    found = contents(lambda: local(user="root"))
    return {"gtids": found.gtids, "sums": found.sums}


def _way(host: Host, options: argparse.Namespace) -> Way:
    promised = None
    with suppress(FlotillaError):  # a restore must not need the table
        progress = shared.read(host.table)[1]
        promised = GtidSet.parse(progress.gtids) if progress else None
    now = time.time_ns() // 1000
    return restore.find(host.bucket, host.ring(), wanted(options), now=now, promised=promised)


def _built(host: Host, options: argparse.Namespace) -> tuple[Way, Path]:
    way = _way(host, options)
    WORK.mkdir(parents=True, exist_ok=True, mode=0o750)
    user = pwd.getpwnam(USER)
    os.chown(WORK, user.pw_uid, user.pw_gid)
    free = shutil.disk_usage(WORK).free
    need = int(way.manifest.raw_bytes * SPARE)
    if free < need:
        raise no_room(WORK, free, need)
    folder = WORK / f"restore-{int(time.time())}"
    restore.restore(host.bucket, host.ring(), way, folder, launch, said=say)
    return way, folder


def launch(folder: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """The server's own program as its own user, with the settings of this host."""
    user = pwd.getpwnam(USER)
    restore.chowned(folder, user.pw_uid, user.pw_gid)
    return subprocess.Popen([MYSQLD, f"--user={USER}", *options], stdin=subprocess.DEVNULL)


def _swapped(data: Path) -> Path:
    """Put a data directory in the place of the one in use; where that one is kept."""
    kept = WORK / f"before-{int(time.time())}"
    _systemctl("stop", "mysql.service")
    try:
        DATA.rename(kept)
    except OSError as error:
        _systemctl("start", "mysql.service")
        raise HostFailed(
            f"{DATA} cannot be moved to {kept}: {error.strerror}",
            "a file system of its own cannot; restore onto a host where it is none",
            "It is in use as before",
        ) from None
    data.rename(DATA)
    shutil.rmtree(data.parent, ignore_errors=True)
    _systemctl("start", "mysql.service")
    return kept


def _systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostFailed(f"systemctl {' '.join(words)}: {done.stderr.strip()}")


def wanted(options: argparse.Namespace) -> Wanted:
    """The target that was typed."""
    if options.gtid:
        try:
            return Wanted(gtids=GtidSet.parse(options.gtid))
        except ValueError as error:
            raise Refused(str(error), untouched="Nothing was touched") from None
    return Wanted(until=None if options.to in {"", "latest"} else int(options.to))


def _told(way: Way, started: float) -> dict[str, Any]:
    return {
        "base": way.manifest.id,
        "gtids": str(way.target),
        "replayed": len(way.replay.gtids),
        "term": way.term,
        "seconds": round(time.monotonic() - started, 1),
    }

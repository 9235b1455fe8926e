"""What a Redis host does about backups: take one, fetch one.

``python -m flotilla.agent.redis_backup VERB``. What is said to Redis is said by the host's own
redis_node.py. JSON on stdout, talk on stderr, exit codes as everywhere.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla.agent.backup_host import Host, described_by, no_room
from flotilla.aws import lease
from flotilla.backup import rdb
from flotilla.backup.sealed import Ring
from flotilla.backup.shared import REDIS_BACKUP, taking
from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.memory import keep_freed
from flotilla.options import Parser, finish
from flotilla.rules.redis_backup import Manifest, Snapshot, not_due
from flotilla.words import last_line

ROLE = "redis"
NODE = "/usr/local/lib/flotilla/redis_node.py"
HOME = Path("/var/lib/redis")
# Redis saves, and everything is read once.
SAVE_SECONDS = 3 * 3600.0
# Where redis_restore.py looks for it.
BASE = "appendonlydir/appendonly.aof.1.base.rdb"
ANNOUNCED = "backup.json"


def run(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Take a backup on this replica and store it; with --if-due, if it is due and ours to take."""
    bucket, ring = host.bucket, host.ring()
    try:
        with taking(
            host.table,
            f"{host.name}:{os.getpid()}",
            item=REDIS_BACKUP,
            reason="take a backup of Redis",
        ):
            newest = max(rdb.ids(bucket), default=None)
            if options.if_due and (why := not_due(newest, time.time())):
                return {"made": False, "why": why}
            started = time.monotonic()
            saved = _node("save")
            if saved["why"] and options.if_due:
                return {"made": False, "why": saved["why"]}
            if saved["why"]:
                raise Refused(
                    saved["why"], untouched="Nothing was changed", next="fab redis.status"
                )
            file = Path(saved["file"])
            try:
                snapshot = Snapshot(**{name: saved[name] for name in Snapshot.__dataclass_fields__})
                cluster = f"{host.fleet}-{host.env}"
                made = rdb.store(bucket, ring, file, snapshot, cluster=cluster, now=_now)
            finally:
                file.unlink(missing_ok=True)
    except lease.Held as error:
        if not options.if_due:
            raise
        return {"made": False, "why": error.what}
    seconds = time.monotonic() - started
    host.tell(
        {
            "BackupSeconds": (seconds, "Seconds"),
            "BackupStoredBytes": (float(made.stored_bytes), "Bytes"),
        }
    )
    return {"made": True, "backup": made.id, "seconds": round(seconds, 2)} | _sizes(made)


def fetch(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Bring a backup beside the data, every checksum verified; nothing that Redis uses is touched.

    ``redis_node.py restore`` looks for it there.
    """
    with _alone():
        return _fetched(host, host.ring(), options.backup)


@contextmanager
def _alone() -> Iterator[None]:
    """As redis_restore.py's: what it works with is not to be exchanged. Raises Refused."""
    handle = os.open(HOME, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                "another restore is at work on this host",
                "it goes on when the command that began it was cut off",
                "Nothing was changed",
                "fab redis.status; then the same command again",
            ) from None
        yield
    finally:
        os.close(handle)


def _fetched(host: Host, ring: Ring, backup: str) -> dict[str, Any]:
    bucket = host.bucket
    manifest = rdb.read_manifest(bucket, ring, backup)
    folder = HOME / "data.new"
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    free = shutil.disk_usage(HOME).free
    # Its append-only file is written once more beside it, by and by.
    if free < 2 * manifest.size:
        raise no_room(HOME, free, 2 * manifest.size)
    base = folder / BASE
    base.parent.mkdir(mode=0o750, parents=True)
    try:
        rdb.fetch(bucket, ring, manifest, base)
    except FlotillaError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Last: a folder without it holds no backup.
    (folder / ANNOUNCED).write_text(json.dumps({"id": manifest.id, "keys": manifest.keys}))
    return {"backup": manifest.id} | _sizes(manifest)


def _sizes(manifest: Manifest) -> dict[str, Any]:
    return {
        "keys": manifest.keys,
        "bytes": manifest.size,
        "stored_bytes": manifest.stored_bytes,
        "taken": manifest.taken,
    }


def _node(*words: str) -> dict[str, Any]:
    """What redis_node.py says. Raises Refused, HostFailed."""
    done = subprocess.run(
        [NODE, *words], capture_output=True, text=True, timeout=SAVE_SECONDS, check=False
    )
    if done.returncode == 0:
        told: dict[str, Any] = json.loads(done.stdout)
        return told
    what = last_line(done.stderr, f"{NODE} {words[0]}: exit {done.returncode}")
    kind = Refused if done.returncode == Refused.exit_code else HostFailed
    raise kind(what, untouched="Redis goes on as before, and no backup was made")


def _now() -> datetime:
    return datetime.now(UTC)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="flotilla-redis-backup", description=__doc__)
    described_by(parser)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run").add_argument("--if-due", action="store_true")
    verbs.add_parser("fetch").add_argument("--backup", required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    options = _parsed(argv)
    keep_freed()
    os.umask(0o027)
    verbs: dict[str, Callable[[Host, argparse.Namespace], dict[str, Any]]] = {
        "run": run,
        "fetch": fetch,
    }

    def act() -> int:
        told = verbs[options.verb](Host(options, os.environ, ROLE), options)
        sys.stdout.write(json.dumps(told) + "\n")
        return 0

    return finish(act)


if __name__ == "__main__":
    sys.exit(main())

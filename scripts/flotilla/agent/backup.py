"""What a database host does about backups: archive its logs, take a full backup, restore.

``python -m flotilla.agent.backup VERB``; archive runs for ever, all others end. JSON on stdout,
talk on stderr, exit codes as everywhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flotilla.agent import drill, restores
from flotilla.agent.archive import Service
from flotilla.agent.backup_host import DATA, SPARE, WORK, Host, described_by, no_room, say
from flotilla.agent.patience import insist
from flotilla.agent.sessions import local
from flotilla.backup import full, stored
from flotilla.backup.bucket import Bucket
from flotilla.backup.sealed import Ring
from flotilla.backup.shared import Archiving, taking
from flotilla.errors import Refused
from flotilla.memory import keep_freed
from flotilla.mysql.accounts import BACKUP
from flotilla.mysql.record import CLUSTER, Records
from flotilla.options import Parser, finish
from flotilla.rules.backup import Manifest

# A scheduled backup is due when the newest one is this old.
DUE = timedelta(hours=20)


def archive(host: Host, _: argparse.Namespace) -> None:
    """Keep the archive of binary logs for ever."""
    Service(
        host=host.name,
        instance_id=insist(lambda: host.instance_id),
        server=local(user=BACKUP),
        index=DATA / "binlog.index",
        records=Records(host.table, CLUSTER),
        archiving=Archiving(host.table, f"{host.name} ({host.instance_id})"),
        bucket=host.bucket,
        ring=host.ring,
        measured=host.tell,
    ).run()


def run(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Take a full backup, or finish one that was cut off."""
    bucket, ring = host.bucket, host.ring()
    if options.if_due:
        why = not_due(bucket, ring, host)
        if why:
            return {"made": False, "why": why}
    with taking(host.table, f"{host.name}:{os.getpid()}"):
        folder, started = WORK / "copy", time.monotonic()
        copy = full.unfinished(folder)
        if copy is None:
            full.forget(folder)  # of one that is not whole, before room is asked for
            _demand_room(DATA, WORK)
            server = local(user=BACKUP)
            try:
                copy = full.copy(server, folder, _now)
            finally:
                server.close()
            say(f"copied: {copy.gtids}")
        copied = time.monotonic()
        upload = full.Upload(
            bucket, ring, folder, copy, cluster=CLUSTER, host=host.name, now=_now, said=say
        )
        manifest = upload.run()
        seconds = {"copy": copied - started, "store": time.monotonic() - copied}
        full.forget(folder)
    host.tell(
        {
            "BackupSeconds": (sum(seconds.values()), "Seconds"),
            "BackupStoredBytes": (float(manifest.stored_bytes), "Bytes"),
        }
    )
    told = {"made": True, "backup": manifest.id, "gtids": manifest.gtids}
    return told | _sizes(manifest) | {"took": {k: round(v, 2) for k, v in seconds.items()}}


def not_due(bucket: Bucket, ring: Ring, host: Host) -> str:
    """Why a scheduled run here has nothing to do; "" when it has."""
    newest = max((one.taken for one in stored.manifests(bucket, ring)), default="")
    if newest and _now() - datetime.fromisoformat(newest) < DUE:
        return f"the newest backup is of {newest}"
    record = Records(host.table, CLUSTER).read()
    if record and record.instance_id == host.instance_id:
        return "this host is the primary; a replica does it"
    return ""


def verify(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Read every byte of a backup, or of all."""
    bucket, ring = host.bucket, host.ring()
    found = stored.manifests(bucket, ring)
    chosen = [one for one in found if options.backup in {"", one.id}]
    if not chosen:
        raise Refused(f"there is no backup {options.backup or 'at all'}", next="fab backup.list")
    wrong = {one.id: stored.verify(bucket, ring, one) for one in chosen}
    return {"verified": [one.id for one in chosen], "wrong": {k: v for k, v in wrong.items() if v}}


def _demand_room(data: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True, mode=0o750)
    need = int(SPARE * sum(path.stat().st_size for path in data.rglob("*") if path.is_file()))
    free = shutil.disk_usage(work).free
    if free < need:
        raise no_room(work, free, need)


def _sizes(manifest: Manifest) -> dict[str, int]:
    return {"bytes": manifest.raw_bytes, "stored_bytes": manifest.stored_bytes}


def _now() -> datetime:
    return datetime.now(UTC)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="flotilla-backup", description=__doc__)
    described_by(parser)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("archive")
    verbs.add_parser("run").add_argument("--if-due", action="store_true")
    verbs.add_parser("verify").add_argument("--backup", default="")
    verbs.add_parser("drill").add_argument("--if-due", action="store_true")
    verbs.add_parser("scratch").add_argument("--drill", required=True)
    for verb in ("find", "rehearse", "restore", "extract"):
        one = verbs.add_parser(verb)
        one.add_argument("--to", default="latest", help="microseconds since the epoch, or latest")
        one.add_argument("--gtid", default="")
        if verb == "extract":
            one.add_argument("--what", required=True, help="DATABASE or DATABASE.TABLE")
            one.add_argument("--output", required=True)
        elif verb == "restore":
            one.add_argument("--even-primary", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    options = _parsed(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.verb != "archive":  # which runs for ever, with little
        keep_freed()
    verbs: dict[str, Callable[[Host, argparse.Namespace], Any]] = {
        "archive": archive,
        "run": run,
        "find": restores.find,
        "rehearse": restores.rehearse,
        "restore": restores.restore_here,
        "extract": restores.extract,
        "verify": verify,
        "drill": drill.drill,
        "scratch": drill.scratch,
    }

    def act() -> int:
        told = verbs[options.verb](Host(options, os.environ), options)
        # Ours, not that of a server which a restore replays into: that has what it is given.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        sys.stdout.write(json.dumps(told | {"peak_mib": peak}) + "\n")
        return 1 if told.get("wrong") else 0

    return finish(act)


if __name__ == "__main__":
    sys.exit(main())

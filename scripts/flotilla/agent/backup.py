"""What a database host does about backups: archive its logs, take a full backup, restore.

``python -m flotilla.agent.backup VERB``; archive runs for ever, all others end. JSON on stdout,
talk on stderr, exit codes as everywhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from flotilla.agent.archive import Service
from flotilla.agent.patience import METADATA, insist
from flotilla.agent.sessions import local
from flotilla.aws.lean import Api, LeanTable, parameters
from flotilla.aws.own_role import METADATA_URL, OwnRole
from flotilla.backup import full, restore, shared, stored
from flotilla.backup.bucket import Bucket
from flotilla.backup.contents import contents
from flotilla.backup.restore import Wanted, Way
from flotilla.backup.sealed import Ring, no_keys
from flotilla.backup.shared import Archiving, taking
from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.mysql.accounts import BACKUP
from flotilla.mysql.record import CLUSTER, Records
from flotilla.options import Parser, finish
from flotilla.rules.backup import Manifest
from flotilla.rules.gtid import GtidSet

DATA = Path("/var/lib/mysql")
# The one place besides its data directory where Debian's AppArmor profile lets the server write.
WORK = Path("/var/lib/mysql-files/flotilla")
MYSQLD = "/usr/sbin/mysqld"
USER = "mysql"
# A backup takes a copy of the data first, and a restore builds a second data directory.
SPARE = 1.15
# As watchers wait for the record, and for anything else.
RECORD_SECONDS, SLOW_SECONDS = 1.0, 5.0
# A scheduled backup is due when the newest one is this old.
DUE = timedelta(hours=20)


class Host:
    """This host: who it is, where its bucket and its keys are."""

    def __init__(self, options: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self.fleet, self.env = options.fleet, options.env
        self._region = environment.get("AWS_REGION", "")
        if not self._region:
            raise Refused(
                "AWS_REGION is not set",
                "it belongs into /etc/flotilla/aws.env, which role base writes",
                "Nothing was changed",
                "fab fleet.configure --limit mysql",
            )
        endpoint = environment.get("AWS_ENDPOINT_URL")
        self._role = OwnRole(environment.get(METADATA, METADATA_URL))
        self._quick = Api(self._region, self._role, endpoint_url=endpoint, seconds=RECORD_SECONDS)
        self._slow = Api(self._region, self._role, endpoint_url=endpoint, seconds=SLOW_SECONDS)
        self.name = options.host

    @cached_property
    def instance_id(self) -> str:
        """As EC2 calls it."""
        return self._role.text("instance-id")

    @cached_property
    def table(self) -> LeanTable:
        """Where records and leases are."""
        return LeanTable(self._quick, f"{self.fleet}-{self.env}-clusters", "cluster", "lease_term")

    @cached_property
    def bucket(self) -> Bucket:
        """Where backups are. boto3 finds region, endpoint and keys by itself."""
        import boto3  # noqa: PLC0415  30 MiB, for those verbs only that need it
        from botocore.config import Config  # noqa: PLC0415

        retries: Any = {"mode": "standard", "total_max_attempts": 3}
        config = Config(connect_timeout=5, read_timeout=60, retries=retries)
        return Bucket(boto3.client("s3", config=config), f"{self.fleet}-{self.env}-backups")

    def ring(self) -> Ring:
        """The keys, read again each time: they may have been rotated. Raises FlotillaError."""
        name = f"/{self.fleet}/{self.env}/mysql/backup_keys"
        found = parameters(self._slow, {name: "keys"})
        if "keys" not in found:
            raise no_keys(name)
        return Ring.parse(found["keys"])


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


def held(_: Host, __: argparse.Namespace) -> dict[str, Any]:
    """A checksum of every table of this host's server, and the GTID set they are of."""
    found = contents(lambda: local(user="root"))
    return {"gtids": found.gtids, "sums": found.sums}


def verify(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Read every byte of a backup, or of all."""
    bucket, ring = host.bucket, host.ring()
    found = stored.manifests(bucket, ring)
    chosen = [one for one in found if options.backup in {"", one.id}]
    if not chosen:
        raise Refused(f"there is no backup {options.backup or 'at all'}", next="fab backup.list")
    wrong = {one.id: stored.verify(bucket, ring, one) for one in chosen}
    return {"verified": [one.id for one in chosen], "wrong": {k: v for k, v in wrong.items() if v}}


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
        raise _no_room(WORK, free, need)
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


def _demand_room(data: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True, mode=0o750)
    need = int(SPARE * sum(path.stat().st_size for path in data.rglob("*") if path.is_file()))
    free = shutil.disk_usage(work).free
    if free < need:
        raise _no_room(work, free, need)


def _no_room(where: Path, free: int, need: int) -> Refused:
    return Refused(
        f"{where} has {free >> 20} MiB free, and {need >> 20} MiB are needed",
        "a copy of the data is made there first",
        "Nothing was changed",
        "docs/runbooks/disk-is-full.md",
    )


def _told(way: Way, started: float) -> dict[str, Any]:
    return {
        "base": way.manifest.id,
        "gtids": str(way.target),
        "replayed": len(way.replay.gtids),
        "seconds": round(time.monotonic() - started, 1),
    }


def _sizes(manifest: Manifest) -> dict[str, int]:
    return {"bytes": manifest.raw_bytes, "stored_bytes": manifest.stored_bytes}


def _now() -> datetime:
    return datetime.now(UTC)


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="flotilla-backup", description=__doc__)
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--host", required=True, help="this host's name")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("archive")
    verbs.add_parser("run").add_argument("--if-due", action="store_true")
    verbs.add_parser("verify").add_argument("--backup", default="")
    verbs.add_parser("contents")
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
    verbs: dict[str, Callable[[Host, argparse.Namespace], Any]] = {
        "archive": archive,
        "run": run,
        "find": find,
        "rehearse": rehearse,
        "contents": held,
        "restore": restore_here,
        "extract": extract,
        "verify": verify,
    }

    def act() -> int:
        told = verbs[options.verb](Host(options, os.environ), options)
        sys.stdout.write(json.dumps(told) + "\n")
        return 1 if told.get("wrong") else 0

    return finish(act)


if __name__ == "__main__":
    sys.exit(main())

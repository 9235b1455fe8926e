"""Prove that backups restore, on a host that is launched for it and has nothing but the bucket.

A replica reads what it holds, launches the host, and compares what that one restored: once to the
replica's own GTID set, table by table, and once to a random moment. What came of it is kept in the
bucket, also when it failed, so that a drill nobody made can be told of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from argparse import Namespace
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla.agent import restores
from flotilla.agent.backup_host import Host, say
from flotilla.backup import shared, stored
from flotilla.backup.bucket import Bucket, MissingError
from flotilla.backup.scratch import Scratch
from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.mysql.record import CLUSTER, Records
from flotilla.rules import archive as rules
from flotilla.rules import restore_drill as names
from flotilla.rules.gtid import GtidSet
from flotilla.wait import DeadlineError, until

ARCHIVED_SECONDS = 60.0
# A terabyte at 100 MB/s is three hours.
RESTORE_SECONDS = 6 * 3600
LOOK_SECONDS = 2.0


def drill(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """{target, exact, differ, restore_seconds, gap_seconds, moment, moment_seconds, host, seconds}.

    ``exact`` says that every table of the restored server has this replica's checksum at the same
    GTID set; ``gap_seconds`` is how long that set took to be in the archive. Raises Refused without
    a backup, HostFailed when a restore failed.
    """
    bucket = host.bucket
    last = names.newest(entry.key for entry in bucket.list(names.FOLDER))
    if options.if_due and (why := _not_due(host, last[1] if last else None)):
        return {"made": False, "why": why}
    with shared.taking(
        host.table, f"{host.name}:{os.getpid()}", item=shared.DRILL, reason="rehearse a restore"
    ):
        at = datetime.now(UTC)
        name, started = names.stamp(at), time.monotonic()
        try:
            told = _drilled(host, name, last[1].timestamp() if last else None)
        except Refused:
            raise
        except FlotillaError as error:
            _record(host, name, {"exact": False, "error": error.what, "host": host.name}, started)
            raise
        return {"made": True} | _record(host, name, told, started)


def scratch(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """On the host that was launched: restore what the order says, and leave the answer."""
    folder = f"{names.WORK}{options.drill}/"
    try:
        order = json.loads(host.bucket.read(f"{folder}order.json"))
        answer: dict[str, Any] = {
            "held": restores.rehearse(host, Namespace(gtid=order["gtids"], to="")),
            "moment": restores.rehearse(host, Namespace(gtid="", to=str(order["moment"]))),
        }
    except FlotillaError as error:
        answer = {"error": error.what}
    except Exception as error:
        # Whatever it is: nobody sees this host's journal any more when it has ended.
        host.bucket.add(f"{folder}answer.json", json.dumps({"error": repr(error)}).encode())
        raise
    host.bucket.add(f"{folder}answer.json", json.dumps(answer).encode())
    return {"wrong": answer["error"]} if "error" in answer else {"drill": options.drill}


def _drilled(host: Host, name: str, last: float | None) -> dict[str, Any]:
    bucket = host.bucket
    manifests = stored.manifests(bucket, host.ring())
    if not manifests:
        raise Refused(
            "there is no full backup", untouched="Nothing was changed", next="fab backup.run"
        )
    holds = restores.held()
    say(f"read {len(holds['sums'])} tables at {holds['gtids']}")
    begun = time.monotonic()
    _archived(host, GtidSet.parse(holds["gtids"]))
    gap = time.monotonic() - begun
    oldest = datetime.fromisoformat(manifests[0].taken).timestamp()
    moment = names.moment(oldest, last, time.time(), random.uniform)
    order = {"gtids": holds["gtids"], "moment": moment}
    bucket.add(f"{names.WORK}{name}/order.json", json.dumps(order).encode())
    answer = _restored(host, name)
    wrong = names.differ(holds["sums"], answer["held"]["sums"])
    return {
        "target": holds["gtids"],
        "exact": not wrong,
        "differ": wrong,
        "tables": len(holds["sums"]),
        "restore_seconds": answer["held"]["seconds"],
        "gap_seconds": round(gap, 2),
        "moment": rules.when(moment),
        "moment_seconds": answer["moment"]["seconds"],
        "base": answer["held"]["base"],
        "host": host.name,
    }


def _restored(host: Host, name: str) -> dict[str, Any]:
    """The answer of a host that was launched for it. Raises HostFailed without a good one."""
    tool = Path(os.environ["PYTHONPATH"]).read_bytes()
    digest = hashlib.sha256(tool).hexdigest()
    host.bucket.add(f"{names.WORK}{digest}.zip", tool)
    data = names.user_data(
        bucket=host.bucket.name,
        digest=digest,
        fleet=host.fleet,
        env=host.env,
        drill=name,
        namespace=host.namespace,
        seconds=RESTORE_SECONDS,
    )
    hosts = host.scratch
    if left := hosts.sweep():
        say(f"ended {', '.join(left)}, which an earlier drill left behind")
    with hosts.launched(host.instance_id, data) as made:
        say(f"launched {made}")
        answer = _answer(host.bucket, f"{names.WORK}{name}/answer.json", hosts, made)
    if "error" in answer:
        raise HostFailed(
            f"the restore on {made} failed: {answer['error']}",
            "what is in the bucket cannot be relied on",
            "No data of the fleet was touched",
            "fab backup.verify; docs/runbooks/restore-drill-fails.md",
        )
    return answer


def _answer(bucket: Bucket, key: str, hosts: Scratch, made: str) -> dict[str, Any]:
    def answered() -> dict[str, Any] | None:
        # One that ended may have answered in its last moment: asked first, read afterwards.
        alive = True
        with suppress(Unreachable):
            alive = hosts.is_alive(made)
        with suppress(Unreachable):
            try:
                found: dict[str, Any] = json.loads(bucket.read(key))
            except MissingError:
                return None if alive else {"error": "it ended without an answer"}
            return found
        return None

    try:
        return until(answered, seconds=RESTORE_SECONDS, every=LOOK_SECONDS)
    except DeadlineError:
        return {"error": f"no answer after {RESTORE_SECONDS} s"}


def _archived(host: Host, gtids: GtidSet) -> None:
    def there() -> bool:
        progress = shared.read(host.table)[1]
        return progress is not None and gtids <= GtidSet.parse(progress.gtids)

    try:
        until(there, seconds=ARCHIVED_SECONDS, every=0.5)
    except DeadlineError:
        raise HostFailed(
            f"what {host.name} holds is not in the archive after {ARCHIVED_SECONDS:.0f} s",
            "a restore would lack it",
            "Nothing was changed",
            "fab backup.list",
        ) from None


def _not_due(host: Host, last: datetime | None) -> str:
    if last and datetime.now(UTC) - last < names.DUE:
        return f"the newest drill is of {last:%Y-%m-%d %H:%M} UTC"
    if not stored.manifests(host.bucket, host.ring()):
        return "there is no full backup yet"
    record = Records(host.table, CLUSTER).read()
    if record and record.instance_id == host.instance_id:
        return "this host is the primary; a replica does it"
    return ""


def _record(host: Host, name: str, told: dict[str, Any], started: float) -> dict[str, Any]:
    told |= {"seconds": round(time.monotonic() - started, 1)}
    host.bucket.add(names.record_key(name), json.dumps(told).encode())
    host.tell(
        {
            "RestoreDrillExact": (float(told["exact"]), "None"),
            "RestoreDrillSeconds": (told["seconds"], "Seconds"),
        }
    )
    return told

"""What fleet.status says of backups: a list of names, the newest manifest, and one item."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime

from flotilla.aws import dynamo
from flotilla.backup import operate, rdb, shared
from flotilla.backup.bucket import Bucket
from flotilla.errors import FlotillaError, Unreachable
from flotilla.rules import backup as names
from flotilla.rules import redis_backup, restore_drill
from flotilla.rules.archive_duty import Progress, objection
from flotilla.rules.backup import Manifest
from flotilla.rules.gtid import GtidSet
from flotilla.rules.restore_drill import Drilled
from flotilla.rules.status_world import Backups, RedisBackups
from flotilla.settings import Settings


def backups(settings: Settings) -> Backups:
    """Raises FlotillaError when DynamoDB does not answer, or the newest manifest is none."""
    progress = shared.read(dynamo.clusters(settings))[1]
    now = time.time()
    try:
        return _backups(operate.bucket(settings), progress, now)
    except Unreachable as error:
        # How far the archive is behind is told all the same: this is when somebody asks.
        known = replace(progress, missing="") if progress else None
        return Backups(None, objection(known, GtidSet(), now), now, silent=error.what)


def redis_backups(settings: Settings) -> RedisBackups:
    """By their names alone. Raises FlotillaError when S3 does not answer."""
    newest = max(rdb.ids(operate.bucket(settings)), default=None)
    return RedisBackups(redis_backup.begun(newest) if newest else None, time.time())


def _backups(bucket: Bucket, progress: Progress | None, now: float) -> Backups:
    whole = (entry.key for entry in bucket.list(names.FULL) if entry.key.endswith(names.MANIFEST))
    newest = max((found for key in whole if (found := names.id_of(key))), default=None)
    drilled = _drilled(bucket)
    if newest is None:
        return Backups(None, objection(progress, GtidSet(), now), now, drilled)
    key = names.manifest_key(newest)
    try:
        manifest = Manifest.parse(bucket.read(key))
    except ValueError as error:
        raise FlotillaError(f"{key} is no manifest: {error}", next="fab backup.verify") from None
    taken = datetime.fromisoformat(manifest.taken).timestamp()
    return Backups(taken, objection(progress, GtidSet.parse(manifest.gtids), now), now, drilled)


def _drilled(bucket: Bucket) -> Drilled | None:
    found = restore_drill.newest(entry.key for entry in bucket.list(restore_drill.FOLDER))
    if found is None:
        return None
    key, at = found
    try:
        return restore_drill.drilled(at, json.loads(bucket.read(key)))
    except (ValueError, AttributeError, TypeError) as error:
        return Drilled(at.timestamp(), f"{key} is no record of a drill: {error}")

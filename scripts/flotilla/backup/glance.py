"""What fleet.status says of backups: a list of names, the newest manifest, and one item."""

from __future__ import annotations

import time
from datetime import datetime

from flotilla.aws import dynamo
from flotilla.backup import operate, shared
from flotilla.errors import FlotillaError
from flotilla.rules import backup as names
from flotilla.rules.archive_duty import objection
from flotilla.rules.backup import Manifest
from flotilla.rules.gtid import GtidSet
from flotilla.rules.status_world import Backups
from flotilla.settings import Settings


def backups(settings: Settings) -> Backups:
    """Raises FlotillaError when S3 or DynamoDB does not answer, or the newest manifest is none."""
    bucket = operate.bucket(settings)
    whole = (entry.key for entry in bucket.list(names.FULL) if entry.key.endswith("/manifest.json"))
    newest = max((found for key in whole if (found := names.id_of(key))), default=None)
    progress = shared.read(dynamo.clusters(settings))[1]
    now = time.time()
    if newest is None:
        return Backups(None, objection(progress, GtidSet(), now), now)
    key = names.manifest_key(newest)
    try:
        manifest = Manifest.parse(bucket.read(key))
    except ValueError as error:
        raise FlotillaError(f"{key} is no manifest: {error}", next="fab backup.verify") from None
    taken = datetime.fromisoformat(manifest.taken).timestamp()
    return Backups(taken, objection(progress, GtidSet.parse(manifest.gtids), now), now)

"""Make another fleet's backups this one's: after a region or an account was lost, to go on from a
copy.

Objects go from bucket to bucket inside S3, manifests last, so a run that was cut off has left no
backup that looks whole; the same command goes on. The other fleet's keys come behind our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from flotilla.aws.session import client
from flotilla.backup import operate
from flotilla.backup.bucket import Bucket, Entry
from flotilla.errors import FlotillaError, Refused
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.rules import backup as names
from flotilla.rules.archive import BINLOG
from flotilla.settings import Settings

COMMAND = "fab backup.adopt"
AT_ONCE = 8


def adopt(
    settings: Settings,
    *,
    source: str,
    region: str,
    parameter: str,
    confirmed: Confirmed,
    said: Said,
) -> dict[str, Any]:
    """Copy what is in bucket ``source``, and the keys in SSM parameter ``parameter``, both of
    ``region``: {bucket, objects, bytes, backups, keys}.

    Raises Refused with nothing changed where our bucket holds backups of its own, or ``source``
    holds none.
    """
    there = settings.elsewhere(region or settings.region)
    ours, theirs = operate.bucket(settings), Bucket(client(there, "s3"), source)
    keys, added = operate.ring(settings), operate.ring(there, parameter)
    wanted, left = _plan(theirs, ours)
    missing = [key for key in added.keys if key not in keys.keys]
    size = sum(entry.size for entry in left)
    backups = [entry.key for entry in wanted if entry.key.endswith(names.MANIFEST)]
    told = {
        "bucket": source,
        "objects": len(left),
        "bytes": size,
        "backups": len(backups),
        "keys": len(missing),
    }
    if not left and not missing:
        return told
    confirmed(
        f"{settings.prefix}: copy {len(left)} objects, {size >> 20} MiB, with {len(backups)} full"
        f" backups from {source}, and put {len(missing)} keys behind our own {len(keys.keys)}"
    )
    with recorded(settings, COMMAND, said) as steps:
        if missing:
            with steps.step("keys"):
                operate.store_ring(settings, [*keys.keys, *missing])
        with steps.step(f"copy {len(left)} objects"):
            _copy(ours, theirs, left)
        steps.result = told
    return told


def _plan(theirs: Bucket, ours: Bucket) -> tuple[list[Entry], list[Entry]]:
    """All that is to be here, and what is not yet."""
    wanted = [entry for prefix in (names.FULL, BINLOG) for entry in theirs.list(prefix)]
    if not any(entry.key.endswith(names.MANIFEST) for entry in wanted):
        raise Refused(
            f"s3://{theirs.name} has no full backup",
            untouched="Nothing was changed",
            next="aws s3 ls: which bucket has them?",
        )
    held = {e.key: e.size for prefix in (names.FULL, BINLOG) for e in ours.list(prefix)}
    known = {entry.key: entry.size for entry in wanted}
    if foreign := sorted(key for key, size in held.items() if known.get(key) != size):
        raise Refused(
            f"s3://{ours.name} has backups of its own: {foreign[0]}",
            "two histories in one archive could not be told apart",
            "Nothing was changed",
            "an environment of another name, which begins with an empty bucket",
        )
    return wanted, [entry for entry in wanted if entry.key not in held]


def _copy(ours: Bucket, theirs: Bucket, left: Sequence[Entry]) -> None:
    last = [entry for entry in left if entry.key.endswith(names.MANIFEST)]
    first = [entry for entry in left if not entry.key.endswith(names.MANIFEST)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for some in (first, last):
            list(pool.map(partial(_one, ours, theirs), some))


def _one(ours: Bucket, theirs: Bucket, entry: Entry) -> None:
    ours.take(theirs, entry.key)
    found = ours.find(entry.key)
    if found is None or found.size != entry.size:
        raise FlotillaError(
            f"s3://{ours.name}/{entry.key} is not what was copied: {found and found.size} bytes,"
            f" {entry.size} expected",
            next=COMMAND,
        )

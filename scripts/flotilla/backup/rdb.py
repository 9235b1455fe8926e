"""Store a snapshot of Redis in the bucket of backups, and bring one back, checked byte by byte.

An object is stored once and never written over; the manifest comes last. What a run that was cut
off left is no backup, and the bucket's lifecycle is rid of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from flotilla.backup import stored
from flotilla.backup.bucket import Bucket, MissingError
from flotilla.backup.sealed import DamagedError, Ring, digest
from flotilla.errors import FlotillaError, Refused
from flotilla.rules import redis_backup as rules
from flotilla.rules.backup import new_id
from flotilla.rules.redis_backup import Manifest, Snapshot

TOOL = "flotilla 1"
NEXT = "fab redis.backups, and restore another one"


def store(
    bucket: Bucket,
    ring: Ring,
    file: Path,
    snapshot: Snapshot,
    *,
    cluster: str,
    now: Callable[[], datetime],
) -> Manifest:
    """Store a snapshot's file. Raises FlotillaError; there is no backup then."""
    size, sha256 = file.stat().st_size, _sha256(file)
    backup = new_id(datetime.fromisoformat(snapshot.taken), sha256)
    digests, total = [], 0
    with file.open("rb") as opened:
        for number, (_, length) in enumerate(rules.pieces(size)):
            key = rules.chunk_key(backup, number)
            sealed = ring.seal(key, opened.read(length))
            if not bucket.add(key, sealed):
                raise FlotillaError(f"{key} is stored already", next="fab redis.backup")
            digests.append(digest(sealed))
            total += len(sealed)
    manifest = Manifest(
        id=backup,
        cluster=cluster,
        host=snapshot.host,
        version=snapshot.version,
        replid=snapshot.replid,
        offset=snapshot.offset,
        keys=snapshot.keys,
        taken=snapshot.taken,
        ended=now().astimezone(UTC).isoformat(timespec="seconds"),
        tool=TOOL,
        key=ring.newest,
        size=size,
        stored_bytes=total,
        sha256=sha256,
        chunks=tuple(digests),
    )
    manifest = replace(manifest, mac=ring.mac(manifest.signed))
    if not bucket.add(rules.manifest_key(backup), manifest.as_json()):
        raise FlotillaError(f"{backup} is stored already", next="fab redis.backups")
    return manifest


def ids(bucket: Bucket) -> list[str]:
    """All whole backups by name, oldest first."""
    return sorted(id_ for entry in bucket.list(rules.FULL) if (id_ := rules.id_of(entry.key)))


def read_manifest(bucket: Bucket, ring: Ring, backup: str) -> Manifest:
    """A backup's manifest; ``backup`` may be "latest". Raises DamagedError, Refused for none."""
    known = ids(bucket)
    wanted = known[-1] if backup == rules.LATEST and known else backup
    if wanted not in known:
        raise Refused(
            f"there is no backup {backup}" if known else "there is no backup of Redis at all",
            untouched="Nothing was changed",
            next="fab redis.backups" if known else "fab redis.backup",
        )
    try:
        return stored.authentic(bucket, ring, rules.manifest_key(wanted), wanted, Manifest.parse)
    except DamagedError as error:
        raise _ours(error) from None


def fetch(bucket: Bucket, ring: Ring, manifest: Manifest, target: Path) -> None:
    """Write the snapshot into the new file ``target``, on the disk when this returns.

    Raises DamagedError naming the object, Unreachable.
    """
    whole = hashlib.sha256()
    with target.open("xb") as file:
        for number, (_, size) in enumerate(rules.pieces(manifest.size)):
            content = _chunk(bucket, ring, manifest, number, size)
            whole.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if whole.hexdigest() != manifest.sha256:
        raise DamagedError(manifest.id, "its chunks are not the snapshot that was stored", NEXT)


def _chunk(bucket: Bucket, ring: Ring, manifest: Manifest, number: int, size: int) -> bytes:
    key = rules.chunk_key(manifest.id, number)
    try:
        sealed = bucket.read(key)
        return stored.checked(ring, key, key, sealed, sha256=manifest.chunks[number], size=size)
    except MissingError:
        raise DamagedError(key, "there is no such object", NEXT) from None
    except DamagedError as error:
        raise _ours(error) from None


def _ours(error: DamagedError) -> DamagedError:
    """The same error with the next command for Redis."""
    if "backup.verify" in error.next:
        error.next = NEXT
    return error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""A snapshot of Redis in S3: whole and as it was, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from flotilla.backup import rdb
from flotilla.backup.bucket import Bucket
from flotilla.backup.sealed import DamagedError, Ring
from flotilla.errors import Refused
from flotilla.rules.redis_backup import CHUNK, Manifest, Snapshot, chunk_key, manifest_key

RING = Ring.parse("a-key-of-backups-that-is-long-enough")
OTHER = Ring.parse("another-key-that-nobody-here-knows")
SNAPSHOT = Snapshot("redis-2", "8.0.2", "a" * 40, 77, 3, "2026-11-20T03:00:00+00:00")
CONTENT = bytes(range(256)) * (2 * CHUNK // 256) + b"the end"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket="backups")
        yield Bucket(s3, "backups")


def made(bucket: Bucket, tmp_path: Path, content: bytes = CONTENT, taken: str = "") -> Manifest:
    file = tmp_path / "dump.rdb"
    file.write_bytes(content)
    snapshot = SNAPSHOT
    if taken:
        snapshot = Snapshot("redis-3", "8.0.2", "a" * 40, 78, 3, taken)
    return rdb.store(
        bucket, RING, file, snapshot, cluster="shop-lab", now=lambda: datetime.now(UTC)
    )


def fetched(bucket: Bucket, tmp_path: Path, backup: str, ring: Ring = RING) -> bytes:
    target = tmp_path / "fetched"
    rdb.fetch(bucket, ring, rdb.read_manifest(bucket, ring, backup), target)
    return target.read_bytes()


def test_what_was_stored_comes_back_and_the_manifest_says_what_it_is(bucket, tmp_path) -> None:
    manifest = made(bucket, tmp_path)
    assert rdb.read_manifest(bucket, RING, manifest.id) == manifest
    assert (manifest.keys, manifest.size, len(manifest.chunks)) == (3, len(CONTENT), 3)
    assert fetched(bucket, tmp_path, manifest.id) == CONTENT


def test_latest_is_the_newest_one(bucket, tmp_path) -> None:
    newest = made(bucket, tmp_path, b"newest", taken="2026-11-21T03:00:00+00:00")
    made(bucket, tmp_path)
    assert rdb.read_manifest(bucket, RING, "latest") == newest


def test_a_backup_without_its_manifest_is_none(bucket, tmp_path) -> None:
    with pytest.raises(Refused, match="no backup of Redis at all"):
        rdb.read_manifest(bucket, RING, "latest")
    manifest = made(bucket, tmp_path)
    bucket.remove([manifest_key(manifest.id)])
    assert rdb.ids(bucket) == []
    with pytest.raises(Refused, match="no backup"):
        rdb.read_manifest(bucket, RING, manifest.id)


def replaced(bucket: Bucket, key: str, content: bytes) -> None:
    bucket.remove([key])
    assert bucket.add(key, content)


def corrupt(bucket: Bucket, manifest: Manifest) -> None:
    key = chunk_key(manifest.id, 1)
    sealed = bytearray(bucket.read(key))
    sealed[len(sealed) // 2] ^= 1
    replaced(bucket, key, bytes(sealed))


def cut(bucket: Bucket, manifest: Manifest) -> None:
    key = chunk_key(manifest.id, 1)
    replaced(bucket, key, bucket.read(key)[:-1])


def gone(bucket: Bucket, manifest: Manifest) -> None:
    bucket.remove([chunk_key(manifest.id, 1)])


def swapped(bucket: Bucket, manifest: Manifest) -> None:
    first, second = (bucket.read(chunk_key(manifest.id, n)) for n in (0, 1))
    replaced(bucket, chunk_key(manifest.id, 0), second)
    replaced(bucket, chunk_key(manifest.id, 1), first)


def forged(bucket: Bucket, manifest: Manifest) -> None:
    text = bucket.read(manifest_key(manifest.id)).replace(b'"keys": 3', b'"keys": 4')
    replaced(bucket, manifest_key(manifest.id), text)


def halved(bucket: Bucket, manifest: Manifest) -> None:
    key = manifest_key(manifest.id)
    replaced(bucket, key, bucket.read(key)[:200])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (corrupt, "chunk-1"),
        (cut, "chunk-1"),
        (gone, "chunk-1"),
        (swapped, "chunk-0"),
        (forged, "manifest.json"),
        (halved, "manifest.json"),
    ],
)
def test_what_is_not_what_was_stored_is_refused_by_name(
    bucket, tmp_path, spoil: Callable[[Bucket, Manifest], None], named: str
) -> None:
    manifest = made(bucket, tmp_path)
    spoil(bucket, manifest)
    with pytest.raises(DamagedError, match=named) as refused:
        fetched(bucket, tmp_path, manifest.id)
    assert "fab redis.backups" in refused.value.next


def test_another_backups_manifest_is_refused(bucket, tmp_path) -> None:
    manifest = made(bucket, tmp_path)
    other = made(bucket, tmp_path, b"other", taken="2026-11-21T03:00:00+00:00")
    replaced(bucket, manifest_key(manifest.id), bucket.read(manifest_key(other.id)))
    with pytest.raises(DamagedError, match=f"it is the manifest of {other.id}"):
        rdb.read_manifest(bucket, RING, manifest.id)


def test_without_the_key_nothing_opens(bucket, tmp_path) -> None:
    manifest = made(bucket, tmp_path)
    with pytest.raises(DamagedError, match="not written with a key of the ring"):
        rdb.read_manifest(bucket, OTHER, manifest.id)
    with pytest.raises(DamagedError, match=r"chunk-0: .*sealed with key") as refused:
        rdb.fetch(bucket, OTHER, manifest, tmp_path / "fetched")
    assert "backup-key-is-lost" in refused.value.next
    rotated = Ring((*OTHER.keys, *RING.keys))
    assert rdb.read_manifest(bucket, rotated, manifest.id) == manifest

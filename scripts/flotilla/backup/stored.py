"""Read what is stored of full backups: which there are, whether they are sound, and their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from flotilla.backup import direct
from flotilla.backup.bucket import Bucket, MissingError
from flotilla.backup.sealed import DamagedError, Ring, digest
from flotilla.rules import backup as rules
from flotilla.rules.backup import File, Manifest, Segment, Stored

# Memory as in a backup; but a restore is waited for.
WORKERS = 3
# Requests for manifests: each is small, and takes S3 some time.
AT_ONCE = 8
# Nothing is larger than this once it is opened.
INDEX_MOST = 256 << 20


class _Signed(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def signed(self) -> bytes: ...


_S = TypeVar("_S", bound=_Signed)


def read_manifest(bucket: Bucket, ring: Ring, backup: str) -> Manifest:
    """A backup's manifest. Raises DamagedError, MissingError."""
    return authentic(bucket, ring, rules.manifest_key(backup), backup, Manifest.parse)


def authentic(
    bucket: Bucket, ring: Ring, key: str, backup: str, parse: Callable[[bytes], _S]
) -> _S:
    """What ``parse`` makes of the object ``key``, if it is the manifest of ``backup`` and somebody
    with a key of the ring wrote it. Raises DamagedError, MissingError.
    """
    try:
        manifest = parse(bucket.read(key))
    except ValueError as error:
        raise DamagedError(key, f"it is no manifest: {error}") from None
    if not ring.is_mac(manifest.mac, manifest.signed):
        raise DamagedError(
            key, f"it was not written with a key of the ring (it names key {manifest.key})"
        )
    if manifest.id != backup:
        raise DamagedError(key, f"it is the manifest of {manifest.id}")
    return manifest


def manifests(bucket: Bucket, ring: Ring) -> list[Manifest]:
    """All whole backups, oldest first."""
    keys = (entry.key for entry in bucket.list(rules.FULL) if entry.key.endswith(rules.MANIFEST))
    found = [id_ for key in keys if (id_ := rules.id_of(key))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(partial(read_manifest, bucket, ring), sorted(found)))


@dataclass(frozen=True, slots=True)
class Index:
    """What a backup consists of, read and checked."""

    files: list[File]
    chunks: list[tuple[Stored, tuple[Segment, ...]]]


def read_index(bucket: Bucket, ring: Ring, manifest: Manifest) -> Index:
    """Raises DamagedError where it is not the one that the manifest means."""
    key = rules.index_key(manifest.id)
    try:
        sealed = bucket.read(key)
    except MissingError:
        raise DamagedError(key, "there is no such object") from None
    if digest(sealed) != manifest.index_sha256:
        raise DamagedError(key, "its checksum is not the one in the manifest")
    files, stored = rules.parse_index(ring.open(key, sealed, most=INDEX_MOST).decode())
    segments = list(rules.chunks(files))
    if not len(stored) == len(segments) == manifest.chunks:
        raise DamagedError(key, f"{len(stored)} chunks, where {manifest.chunks} were stored")
    return Index(files, list(zip(stored, segments, strict=True)))


def opened(bucket: Bucket, ring: Ring, backup: str, one: Stored, size: int) -> bytes:
    """A chunk's content. Raises DamagedError naming its object and where it lies in there."""
    key = rules.volume_key(backup, one.volume)
    where = f"{key}, bytes {one.offset} to {one.offset + one.length} (chunk {one.number})"
    try:
        sealed = bucket.read(key, offset=one.offset, length=one.length)
    except MissingError:
        raise DamagedError(where, "there is no such object, or it ends before") from None
    name = rules.chunk_name(backup, one.number)
    return checked(ring, where, name, sealed, sha256=one.sha256, size=size)


def checked(ring: Ring, where: str, name: str, sealed: bytes, *, sha256: str, size: int) -> bytes:
    """The ``size`` bytes that were sealed under ``name``. Raises DamagedError naming ``where``."""
    if digest(sealed) != sha256:
        raise DamagedError(where, "its checksum is not the one that was noted when it was stored")
    try:
        content = ring.open(name, sealed, most=size)
    except DamagedError as error:
        raise DamagedError(where, error.what, error.next) from None
    if len(content) != size:
        raise DamagedError(where, f"it holds {len(content)} bytes, not {size}")
    return content


def verify(bucket: Bucket, ring: Ring, manifest: Manifest, *, workers: int = WORKERS) -> list[str]:
    """Read and open every byte of a backup; what is wrong with it, one sentence each."""
    try:
        index = read_index(bucket, ring, manifest)
    except DamagedError as error:
        return [error.what]
    wrong: list[str] = []

    def check(item: tuple[Stored, tuple[Segment, ...]]) -> None:
        stored, segments = item
        try:
            opened(bucket, ring, manifest.id, stored, sum(s.length for s in segments))
        except DamagedError as error:
            wrong.append(error.what)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(check, index.chunks):
            pass
    return sorted(wrong)


def fetch(
    bucket: Bucket, ring: Ring, manifest: Manifest, target: Path, *, workers: int = WORKERS
) -> list[Path]:
    """Write all files of a backup into the empty folder ``target``, and return them.

    Every chunk's checksum is checked and its seal opened before a byte of it is written. What is
    written is on its way to the disk; it is there after ``settle`` of what is returned. Raises
    DamagedError, naming the object, Unreachable.
    """
    index = read_index(bucket, ring, manifest)
    paths = [_inside(target, file.path) for file in index.files]
    for path, file in zip(paths, index.files, strict=True):
        if file.path.endswith("/"):
            path.mkdir(mode=0o750)
            continue
        with path.open("xb") as made:
            made.truncate(file.size)
        path.chmod(0o640)

    def write(item: tuple[Stored, tuple[Segment, ...]]) -> None:
        stored, segments = item
        content = opened(bucket, ring, manifest.id, stored, sum(s.length for s in segments))
        at = 0
        for segment in segments:
            part = memoryview(content)[at : at + segment.length]
            direct.write(paths[segment.file], segment.offset, part)
            at += segment.length

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(write, index.chunks):
            pass
    return paths


def settle(target: Path, paths: Sequence[Path]) -> None:
    """Wait until what ``fetch`` wrote is on the disk. A file that a server has removed since is
    passed over: what the server changes, it brings to the disk itself.
    """
    for path in {*paths, target, *(path.parent for path in paths)}:
        with suppress(FileNotFoundError):
            opened_ = os.open(path, os.O_RDONLY)
            try:
                os.fsync(opened_)
            finally:
                os.close(opened_)


def _inside(target: Path, path: str) -> Path:
    made = target / path
    if not made.resolve().is_relative_to(target.resolve()):
        raise DamagedError(path, "this name of a file leads out of the data directory")
    return made

"""What a full backup is made of, and by which names its parts are known.

    mysql/full/<id>/manifest.json    written last: without it there is no backup
    mysql/full/<id>/index            one line for every chunk, sealed
    mysql/full/<id>/volume-<n>       chunks one after another, each sealed under its own name

A chunk is at most CHUNK bytes of files, in the order of their names; small files share one. Which
bytes chunk 7 has depends on the files alone, so a run that was cut off goes on where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

FULL = "mysql/full/"
MANIFEST = "/manifest.json"
FORMAT = 1
CHUNK = 8 << 20
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Segment:
    """``length`` bytes from ``offset`` of file number ``file``."""

    file: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a chunk lies: in which volume, from where, how long; SHA-256 of those bytes."""

    number: int
    volume: int
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class File:
    """A file of the data directory: its path in there, and its bytes. A directory ends with a /."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Proven:
    """What proves who wrote it, by a field ``mac`` over all its other fields."""

    @property
    def signed(self) -> bytes:
        """What ``mac`` is made of."""
        proven = {name: value for name, value in asdict(self).items() if name != "mac"}
        return json.dumps(proven, sort_keys=True, separators=(",", ":")).encode()

    def as_json(self) -> bytes:
        """To be stored."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Manifest(Proven):
    """A whole backup, in a few hundred bytes. Times are ISO 8601 in UTC.

    A server restored from it has executed all of ``gtids`` and nothing but ``most_gtids``. ``mac``
    proves that whoever wrote this had the key, over all other fields.
    """

    id: str
    cluster: str
    host: str
    server_uuid: str
    server_version: str
    gtids: str
    most_gtids: str
    began: str
    taken: str
    ended: str
    tool: str
    key: str
    files: int
    raw_bytes: int
    stored_bytes: int
    chunks: int
    volumes: tuple[int, ...]
    index_sha256: str
    format: int = FORMAT
    mac: str = ""

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Raises ValueError for what is none, or of a format that a newer release made."""
        found: dict[str, Any] = json.loads(text)
        if found.get("format") != FORMAT:
            raise ValueError(f"format {found.get('format')!r}; this release reads {FORMAT}")
        try:
            return cls(**{**found, "volumes": tuple(found["volumes"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"a field is missing or unknown ({error})") from error


def new_id(now: datetime, server_uuid: str) -> str:
    """Sorts by time: 20261121T214500Z-1a2b3c4d."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{server_uuid[:8]}"


def id_of(key: str) -> str | None:
    """The backup that an object belongs to; None when it is no part of one."""
    name = key.removeprefix(FULL).partition("/")[0]
    return name if key.startswith(FULL) and _ID.fullmatch(name) else None


def manifest_key(backup: str) -> str:
    """Where a backup's manifest is."""
    return f"{FULL}{backup}{MANIFEST}"


def index_key(backup: str) -> str:
    """Where the list of its chunks is."""
    return f"{FULL}{backup}/index"


def volume_key(backup: str, volume: int) -> str:
    """Where its chunks are."""
    return f"{FULL}{backup}/volume-{volume}"


def chunk_name(backup: str, number: int) -> str:
    """What a chunk is sealed under: it fits nowhere else."""
    return f"{FULL}{backup}/chunk-{number}"


def chunks(files: Iterable[File], limit: int = CHUNK) -> Iterator[tuple[Segment, ...]]:
    """All bytes of all files, in order, in chunks of at most ``limit``; empty files need none."""
    filled, segments = 0, list[Segment]()
    for number, file in enumerate(files):
        offset = 0
        while offset < file.size:
            length = min(limit - filled, file.size - offset)
            segments.append(Segment(number, offset, length))
            offset, filled = offset + length, filled + length
            if filled == limit:
                yield tuple(segments)
                filled, segments = 0, []
    if segments:
        yield tuple(segments)


def index_lines(files: Iterable[File], stored: Iterable[Stored]) -> Iterator[str]:
    """The index as text: files first, then chunks by number."""
    for file in files:
        yield json.dumps([file.path, file.size])
    yield ""
    for one in sorted(stored, key=lambda one: one.number):
        yield json.dumps([one.volume, one.offset, one.length, one.sha256])


def parse_index(text: str) -> tuple[list[File], list[Stored]]:
    """Files and chunks. Raises ValueError for what is no index."""
    head, _, tail = text.partition("\n\n")
    files = [File(*json.loads(line)) for line in head.splitlines()]
    stored = [Stored(n, *json.loads(line)) for n, line in enumerate(tail.splitlines())]
    return files, stored


def summary(manifests: Iterable[Manifest]) -> list[Mapping[str, Any]]:
    """For people and --json: newest first."""
    return [
        {
            "id": one.id,
            "host": one.host,
            "taken": one.taken,
            "gtids": one.gtids,
            "version": one.server_version,
            "bytes": one.raw_bytes,
            "stored_bytes": one.stored_bytes,
        }
        for one in sorted(manifests, key=lambda one: one.id, reverse=True)
    ]

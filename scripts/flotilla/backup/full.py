"""Take a full backup: a local copy by the clone plugin, then streamed to S3 in parallel.

The copy is made by ``CLONE LOCAL`` while the replica goes on: consistent, of some moment before its
end. Which one it does not say (9.7.4 leaves GTID_EXECUTED of a local copy empty), and only a server
started on it would know. So two sets are kept: what was executed before the copy began, which it
surely holds, and what was executed when it had ended, beyond which it holds nothing.

From then on the server is not needed, and the stream may be cut off at any byte: what was stored is
written down beside the copy, and the next run goes on with the chunk after. Volumes become visible
when they are complete, the backup when its manifest is there, which comes last.

Memory: a worker holds one chunk, its sealed form, and what it has not sent yet.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla.backup import direct, stored
from flotilla.backup.bucket import Bucket, MissingError
from flotilla.backup.sealed import Ring, digest
from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts.mysql import Server
from flotilla.rules import backup as rules
from flotilla.rules.backup import File, Manifest, Segment, Stored

TOOL = "flotilla 1"
# S3 takes no smaller part but the last, and no more than 10,000 of them.
PART = 8 << 20
PARTS = 10_000
# Each takes 45 MiB with data that does not compress (four: 252 of 256 that the unit allows), and
# what it gets of the disk, which clients' writes wait for.
WORKERS = 2
# A worker rests for as long as a chunk took it: what it takes of processors, disk and network, it
# takes half of the time. Clients' p50 beside it: 13 ms without, 11 ms with, 9 ms with no backup.
# Not for longer than REST_MOST: it may have waited for S3, or for a processor that others need.
REST, REST_MOST = 1.0, 0.5
# A copy is dropped under this name.
GONE = "gone-"
PIECE, PIECE_SECONDS = 32 << 20, 0.02
CLONE_SECONDS = 6 * 3600.0
_CLONED = """
SELECT STATE AS state, ERROR_MESSAGE AS message, @@GLOBAL.gtid_executed AS gtids,
  @@GLOBAL.server_uuid AS uuid, @@GLOBAL.version AS version
FROM performance_schema.clone_status
"""
_EXECUTED = "SELECT @@GLOBAL.gtid_executed AS gtids"


@dataclass(frozen=True, slots=True)
class Copy:
    """A local copy of a server's data: it holds all of ``gtids`` and nothing but ``most_gtids``.

    ``began`` and ``taken`` are ISO 8601 in UTC.
    """

    id: str
    server_uuid: str
    server_version: str
    gtids: str
    most_gtids: str
    began: str
    taken: str


def copy(server: Server, folder: Path, now: Callable[[], datetime]) -> Copy:
    """Copy a running server's data into ``folder``/data, where it writes; see ``Copy``.

    The folder must belong to the server's user. Raises HostFailed when the copy was not completed.
    """
    began = now()
    forget(folder)
    folder.mkdir(parents=True, mode=0o750)
    # The server copies as fast as it can; were gigabytes on their way to the disk, clients' commits
    # would wait behind them. Files made in here are written through. Where the file system has no
    # such attribute, or the host no chattr, the copy is made all the same.
    with suppress(OSError):
        subprocess.run(["chattr", "+S", str(folder)], capture_output=True, check=False)
    least = server.query(_EXECUTED)[0]["gtids"]
    server.query("CLONE LOCAL DATA DIRECTORY = %s", (str(folder / "data"),), seconds=CLONE_SECONDS)
    rows = server.query(_CLONED)
    if not rows or rows[0]["state"] != "Completed":
        said = f"{rows[0]['state']}: {rows[0]['message']}" if rows else "it says nothing of it"
        raise HostFailed(
            f"{server.name}: the local copy was not completed ({said})",
            untouched="It goes on as before, and no backup was made",
            next=f"fab fleet.logs {server.name}",
        )
    row = rows[0]
    made = Copy(
        id=rules.new_id(began, row["uuid"]),
        server_uuid=row["uuid"],
        server_version=row["version"],
        gtids="".join(least.split()),
        most_gtids="".join(row["gtids"].split()),
        began=_iso(began),
        taken=_iso(now()),
    )
    # Last: a folder without it holds no copy.
    _written(folder / "copy.json", json.dumps(asdict(made)))
    return made


def unfinished(folder: Path) -> Copy | None:
    """The copy that an earlier run left behind, whole; None where there is none."""
    try:
        return Copy(**json.loads((folder / "copy.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(slots=True)
class _Volume:
    """One multipart upload on its way; only its own worker touches it."""

    number: int
    key: str
    upload: str
    tags: dict[int, str] = field(default_factory=dict)
    offset: int = 0
    waiting: list[bytes] = field(default_factory=list)
    chunks: list[Stored] = field(default_factory=list)

    @property
    def unsent(self) -> int:
        return sum(map(len, self.waiting))


class Upload:
    """Brings a copy to the bucket. ``run`` again after a failure goes on where it was."""

    def __init__(
        self,
        bucket: Bucket,
        ring: Ring,
        folder: Path,
        copy_: Copy,
        *,
        cluster: str,
        host: str,
        now: Callable[[], datetime],
        workers: int = WORKERS,
        said: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = bucket
        self._ring = ring
        self._folder = folder
        self._copy = copy_
        self._cluster = cluster
        self._host = host
        self._now = now
        self._workers = workers
        self._said = said
        self._clock = clock
        self._sleep = sleep
        self._files = list(_files(folder / "data"))
        self._journal = folder / "progress.jsonl"
        self._guard = threading.Lock()
        self._stored: list[Stored] = []

    def run(self) -> Manifest:
        """Store every chunk, the index, and then the manifest. Raises FlotillaError."""
        volumes = self._volumes()
        done = {one.number for one in self._stored}
        left = iter([(n, c) for n, c in enumerate(self._chunks()) if n not in done])
        if done:
            self._said(f"going on after {len(done)} chunks")
        with ThreadPoolExecutor(len(volumes)) as pool:
            # All of them end before the first error is raised: what they stored is written down.
            futures = [pool.submit(self._fill, volume, left) for volume in volumes]
        for future in futures:
            future.result()
        for volume in volumes:
            self._complete(volume)
        return self._manifest(volumes)

    def _chunks(self) -> Iterator[tuple[Segment, ...]]:
        return rules.chunks(self._files)

    def _fill(self, volume: _Volume, left: Iterator[tuple[int, tuple[Segment, ...]]]) -> None:
        while True:
            with self._guard:
                number, chunk = next(left, (-1, ()))
            if number < 0:
                break
            began = self._clock()
            raw = self._read(chunk)
            sealed = self._ring.seal(rules.chunk_name(self._copy.id, number), raw)
            at = volume.offset + volume.unsent
            volume.waiting.append(sealed)
            volume.chunks.append(Stored(number, volume.number, at, len(sealed), digest(sealed)))
            if volume.unsent >= PART:
                self._send(volume)
            self._sleep(min(REST * (self._clock() - began), REST_MOST))
        if volume.unsent or not volume.tags:
            self._send(volume)

    def _send(self, volume: _Volume) -> None:
        number = len(volume.tags) + 1
        if number > PARTS:
            raise FlotillaError(
                f"{volume.key} would have more than {PARTS} parts",
                why=f"S3 takes no more, and parts here have {PART >> 20} MiB",
                next="report it: larger parts are needed for so much data",
            )
        body = b"".join(volume.waiting)
        tag = self._bucket.part(volume.key, volume.upload, number, body)
        done, volume.chunks, volume.waiting = volume.chunks, [], []
        volume.tags[number], volume.offset = tag, volume.offset + len(body)
        self._write_down(
            {
                "volume": volume.number,
                "part": number,
                "tag": tag,
                "bytes": len(body),
                "chunks": [[one.number, one.offset, one.length, one.sha256] for one in done],
            }
        )
        with self._guard:
            self._stored.extend(done)

    def _complete(self, volume: _Volume) -> None:
        try:
            self._bucket.complete(volume.key, volume.upload, volume.tags)
        except MissingError:
            # Completed by the run that was cut off before it could say so.
            found = self._bucket.find(volume.key)
            if found is None or found.size != volume.offset:
                self._journal.unlink(missing_ok=True)
                raise FlotillaError(
                    f"the unfinished upload of {volume.key} is gone",
                    "S3 drops one that nobody finished in a week",
                    "The local copy is still there",
                    "fab backup.run",
                ) from None

    def _manifest(self, volumes: list[_Volume]) -> Manifest:
        chunks = sum(1 for _ in self._chunks())
        if len(self._stored) != chunks:
            raise FlotillaError(f"{len(self._stored)} of {chunks} chunks were stored")
        backup = self._copy.id
        lines = "\n".join(rules.index_lines(self._files, self._stored)).encode()
        index = self._ring.seal(rules.index_key(backup), lines)
        key = rules.index_key(backup)
        if not self._bucket.add(key, index):
            index = self._bucket.read(key)
        manifest = Manifest(
            id=backup,
            cluster=self._cluster,
            host=self._host,
            server_uuid=self._copy.server_uuid,
            server_version=self._copy.server_version,
            gtids=self._copy.gtids,
            most_gtids=self._copy.most_gtids,
            began=self._copy.began,
            taken=self._copy.taken,
            ended=_iso(self._now()),
            tool=TOOL,
            key=self._ring.newest,
            files=len(self._files),
            raw_bytes=sum(file.size for file in self._files),
            stored_bytes=sum(volume.offset for volume in volumes),
            chunks=chunks,
            volumes=tuple(volume.offset for volume in volumes),
            index_sha256=digest(index),
        )
        manifest = replace(manifest, mac=self._ring.mac(manifest.signed))
        if not self._bucket.add(rules.manifest_key(backup), manifest.as_json()):
            return stored.read_manifest(self._bucket, self._ring, backup)
        return manifest

    def _read(self, chunk: tuple[Segment, ...]) -> bytes:
        parts = []
        for segment in chunk:
            path = self._folder / "data" / self._files[segment.file].path
            part = direct.read(path, segment.offset, segment.length)
            if len(part) != segment.length:
                raise FlotillaError(f"{path} is shorter than it was: {len(part)} bytes")
            parts.append(part)
        return b"".join(parts)

    def _volumes(self) -> list[_Volume]:
        """Those of the run that was cut off, or new ones."""
        found: dict[int, _Volume] = {}
        for line in _lines(self._journal):
            if "upload" in line:
                key = rules.volume_key(self._copy.id, line["volume"])
                found[line["volume"]] = _Volume(line["volume"], key, line["upload"])
                continue
            volume = found[line["volume"]]
            volume.tags[line["part"]] = line["tag"]
            volume.offset += line["bytes"]
            for number, offset, length, sha256 in line["chunks"]:
                self._stored.append(Stored(number, volume.number, offset, length, sha256))
        for number in range(len(found), self._workers if not found else len(found)):
            key = rules.volume_key(self._copy.id, number)
            found[number] = _Volume(number, key, self._bucket.begin(key))
            self._write_down({"volume": number, "upload": found[number].upload})
        return list(found.values())

    def _write_down(self, line: dict[str, object]) -> None:
        with self._guard, self._journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def forget(folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Drop a local copy, and what runs that were cut off left of dropping theirs.

    Piece by piece: commits wait while the file system frees space, 100 ms for 700 MiB at once. What
    cannot be dropped is left for the next run, and harms nobody but by its size.
    """
    # First: nobody takes it for a copy, or writes into it, while it becomes shorter.
    with suppress(FileNotFoundError):
        folder.rename(folder.with_name(f"{GONE}{time.time_ns()}"))
    for gone in folder.parent.glob(f"{GONE}*"):
        with suppress(OSError):
            for path in gone.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    for size in range(path.stat().st_size - PIECE, 0, -PIECE):
                        os.truncate(path, size)
                        sleep(PIECE_SECONDS)
        shutil.rmtree(gone, ignore_errors=True)


def _files(data: Path) -> Iterator[File]:
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        if path.is_dir():
            # Of its own schema the server wants the directory, which a copy leaves empty.
            yield File(f"{name}/", 0)
        elif path.is_file():
            yield File(name, path.stat().st_size)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; a last one that was cut off is none."""
    with suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)


def _written(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")

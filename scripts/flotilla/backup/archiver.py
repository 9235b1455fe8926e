"""Archive a server's binary logs while it writes them, from its own files.

A replica's log has all that it received, so whichever host archives sends all of history; the
primary does it as long as it can, because nobody knows a transaction sooner. A part is sent within
a second of its commit. Nothing is kept on the host: after a restart the files are read again from
their beginnings, and what is in the bucket says how far they were sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flotilla.backup.bucket import Bucket, MissingError
from flotilla.backup.sealed import DamagedError, Ring
from flotilla.errors import FlotillaError, HostFailed
from flotilla.rules import archive as rules
from flotilla.rules.archive import Known, Part, Piece, Place, Stream, Tenure
from flotilla.rules.binlog import BinlogError, Reader, Transaction
from flotilla.rules.gtid import GtidSet

# What is read, and so sent, at once.
WINDOW = 8 << 20
# So many parts, and what they say is put into one object: the others are asked one by one.
LISTED = 32
# Requests for what parts say: each takes S3 some time, and a log that is written to all day has
# 3,000 lists.
AT_ONCE = 8
# S3 takes 2 KB of metadata in all.
_METADATA_MOST = 1500
_LIST_MOST = 256 << 20


@dataclass(slots=True)
class _File:
    """One log on its way: how far it was read, and how far it was sent."""

    name: str
    path: Path
    reader: Reader = field(default_factory=Reader)
    sent: int = 0
    parts: list[Part] = field(default_factory=list)
    # How many of these are in a list, and how many were looked at for merging.
    listed: int = 0
    merged: int = 0
    # Read and not sent yet.
    waiting: bytearray = field(default_factory=bytearray)
    transactions: list[Transaction] = field(default_factory=list)


class Archiver:
    """Sends one server's logs as one stream. ``turn`` again and again; not for two threads.

    ``ring`` may be exchanged at any time. ``archived`` is what the streams of the archive are known
    to have executed; ``missing`` is what of it is in no file that was sent. It outlives the
    archiver that found it, until some host's log has it after all.
    ``purged`` is what the server executed and has in no log. The logs of one that was made from a
    copy begin as if there had been nothing before: their own word for that leaves it out.
    """

    def __init__(
        self,
        bucket: Bucket,
        ring: Ring,
        index: Path,
        tenure: Tenure,
        archived: GtidSet,
        *,
        missing: GtidSet,
        purged: GtidSet,
    ) -> None:
        self._bucket = bucket
        self.ring = ring
        self._index = index
        self.tenure = tenure
        self.archived = archived
        self._purged = purged
        self.missing = missing
        self._file: _File | None = None

    def turn(self) -> bool:
        """Send what there is to send, a window of it; whether there may be more at once.

        Raises Unreachable when the bucket does not answer, HostFailed for a damaged log. Either way
        the next turn goes on where this one was.
        """
        if self._file is None:
            self._file = self._begin()
        file = self._file
        self._read(file)
        whole = self._sendable(file)
        if whole > file.sent:
            self._send(file, whole)
        if file.reader.is_over and file.sent == file.reader.at:
            following = self._after(file.name)
            if following:
                self._close(file)
                self._file = following
                return True
        return len(file.waiting) >= WINDOW or file.path.stat().st_size > file.reader.at

    @property
    def behind(self) -> bool:
        """Whether something is written on this host that was not sent."""
        file = self._file
        return file is None or file.sent < file.path.stat().st_size

    def _read(self, file: _File) -> None:
        room = WINDOW - len(file.waiting)
        with file.path.open("rb", buffering=0) as source:
            source.seek(file.reader.at)
            data = source.read(max(room, 0))
        try:
            file.transactions += file.reader.feed(data)
        except BinlogError as error:
            # A fresh look: what was read may have been torn, and is not to be sent.
            self._file = None
            raise HostFailed(
                f"{file.path}: {error}",
                "what follows in this log cannot be archived",
                "All before it is in the archive",
                "docs/runbooks/binlog-archive-stops.md",
            ) from None
        file.waiting += data

    def _sendable(self, file: _File) -> int:
        """How far to send: whole transactions; of one that is larger than a window, the window."""
        if file.reader.whole > file.sent:
            return min(file.reader.whole, file.reader.at)
        return file.reader.at if len(file.waiting) >= WINDOW else file.sent

    def _send(self, file: _File, end: int) -> None:
        ended = [one for one in file.transactions if one.end <= end]
        times = [one.committed for one in ended]
        part = Part(
            Place(self.tenure.stream, file.name, file.sent, end),
            GtidSet.of((one.source, one.number) for one in ended),
            min(times, default=0),
            max(times, default=0),
            self.tenure.began,
            self._before(file.reader) if file.sent == 0 else None,
            file.reader.is_over and end == file.reader.at,
        )
        content = part.as_json().encode() + b"\n" + bytes(file.waiting[: end - file.sent])
        key = part.place.key
        said = part.as_json()
        metadata = {"part": said} if len(said) < _METADATA_MOST else {}
        # One of this name has these bytes: the file is the same, and the answer was lost.
        self._bucket.add(key, self.ring.seal(key, content), metadata)
        del file.waiting[: end - file.sent]
        file.transactions = [one for one in file.transactions if one.end > end]
        file.sent = end
        file.parts.append(part)
        self.archived |= part.gtids | (part.previous or GtidSet())
        self.missing -= part.gtids
        if len(file.parts) >= file.listed + LISTED:
            self._list(file, f"{rules.LIST}-{end:012d}", file.parts[file.listed :])
            file.listed = len(file.parts)
            self._merge(file)

    def _close(self, file: _File) -> None:
        """Say in one object what all parts of a finished file say."""
        self._merge(file)
        self._list(file, rules.LIST, file.parts)

    def _merge(self, file: _File) -> None:
        """Store the newest parts once more as one object, from the file: nobody kept them.

        Not what is larger than a window: then its parts are large enough to be read one by one.
        """
        parts = file.parts[file.merged :]
        file.merged = len(file.parts)
        if len(parts) < 2 or parts[-1].place.end - parts[0].place.start > WINDOW:
            return
        place = Place(self.tenure.stream, file.name, parts[0].place.start, parts[-1].place.end)
        with file.path.open("rb", buffering=0) as source:
            source.seek(place.start)
            data = source.read(place.end - place.start)
        self._bucket.add(place.merged, self.ring.seal(place.merged, data))

    def _list(self, file: _File, name: str, parts: list[Part]) -> None:
        key = f"{self.tenure.stream.prefix}{file.name}/{name}"
        text = "\n".join(part.as_json() for part in parts)
        self._bucket.add(key, self.ring.seal(key, text.encode()))

    def _begin(self) -> _File:
        names = _names(self._index)
        sent = sent_so_far(self._bucket, self.ring, self.tenure.stream)
        if sent:
            last = max(sent, key=rules.number_of)
            file = self._at(names, last)
            for part in sent[last]:
                self.archived |= part.gtids
            for parts in sent.values():
                for part in parts:
                    self.missing -= part.gtids
            return self._forward(file, sent[last])
        with_previous = ((path.name, self._previous(path)) for path in names)
        name, self.missing = rules.first_to_send(with_previous, self.archived, self.missing)
        return self._at(names, name)

    def _forward(self, file: _File, parts: list[Part]) -> _File:
        """Read again what was sent."""
        end = parts[-1].place.end if parts else 0
        with file.path.open("rb", buffering=0) as source:
            while file.reader.at < end and (data := source.read(min(WINDOW, end - file.reader.at))):
                file.reader.feed(data)
        if file.reader.at != end:
            raise HostFailed(
                f"{file.path} has {file.reader.at} bytes, and {end} are archived",
                "it is not the file that it was",
                "The archive is as it was",
                "docs/runbooks/binlog-archive-stops.md",
            )
        file.sent, file.parts, file.merged = end, list(parts), len(parts)
        return file

    def _at(self, names: list[Path], name: str) -> _File:
        path = next((path for path in names if path.name == name), None)
        if path is None:
            raise HostFailed(
                f"{name} is archived up to its middle, and this host does not have it any more",
                "what followed is in no archive",
                "All before it is in the archive",
                "fab backup.run",
            )
        return _File(name, path)

    def _after(self, name: str) -> _File | None:
        wanted = rules.number_of(name) + 1
        paths = (path for path in _names(self._index) if rules.number_of(path.name) == wanted)
        return next((_File(path.name, path) for path in paths), None)

    def _before(self, reader: Reader) -> GtidSet:
        """All that the server had executed before a log."""
        return (reader.previous or GtidSet()) | self._purged

    def _previous(self, path: Path) -> GtidSet:
        reader = Reader()
        with path.open("rb", buffering=0) as source:
            while reader.previous is None and (data := source.read(1 << 16)):
                reader.feed(data)
        return self._before(reader)


def sent_so_far(bucket: Bucket, ring: Ring, stream: Stream) -> dict[str, list[Part]]:
    """By file, the parts of a stream that follow each other from the file's beginning."""
    found: dict[str, list[Part]] = {}
    for part in parts_of(bucket, ring, stream.prefix):
        found.setdefault(part.place.file, []).append(part)
    kept: dict[str, list[Part]] = {}
    for name, parts in found.items():
        known = rules.stream_of(stream, parts)
        kept[name] = list(known.parts) if known else []
    return kept


@dataclass(slots=True)
class _Names:
    """What is stored of one log, by name: its parts, what was merged, and the lists."""

    stream: Stream
    file: str
    parts: list[Place] = field(default_factory=list)
    merged: list[Place] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)

    @property
    def whole(self) -> list[str]:
        """The list of all parts of a closed file."""
        return [key for key in self.lists if key.endswith(f"/{rules.LIST}")]


def _named(bucket: Bucket, prefix: str) -> list[_Names]:
    found: dict[tuple[Stream, str], _Names] = {}

    def of(stream: Stream, file: str) -> _Names:
        return found.setdefault((stream, file), _Names(stream, file))

    for entry in bucket.list(prefix):
        if place := Place.of(entry.key):
            of(place.stream, place.file).parts.append(place)
        elif place := Place.of(entry.key, merged=True):
            of(place.stream, place.file).merged.append(place)
        elif entry.key.rpartition("/")[2].partition("-")[0] == rules.LIST:
            _, _, term, uuid, file, _ = entry.key.split("/")
            of(Stream(int(term), uuid), file).lists.append(entry.key)
    return list(found.values())


def parts_of(bucket: Bucket, ring: Ring, prefix: str = rules.BINLOG) -> list[Part]:
    """What all parts say of themselves; by the lists of their files where they are in one."""
    return _said(bucket, ring, _named(bucket, prefix))


def _said(bucket: Bucket, ring: Ring, files: Iterable[_Names]) -> list[Part]:
    names = [one for one in files if one.parts]
    there = {place for one in names for place in one.parts}
    lists = [(key, one) for one in names for key in one.whole or one.lists]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        listed = pool.map(lambda pair: _listed(bucket, ring, *pair), lists)
        known = {part.place: part for said in listed for part in said if part.place in there}
        open_ = (place for one in names if not one.whole for place in one.parts)
        asked = pool.map(partial(_part, bucket, ring), [one for one in open_ if one not in known])
        known |= {part.place: part for part in asked}
    return list(known.values())


def _listed(bucket: Bucket, ring: Ring, key: str, names: _Names) -> list[Part]:
    try:
        text = ring.open(key, bucket.read(key), most=_LIST_MOST).decode()
    except (DamagedError, MissingError):
        if key in names.whole:
            raise
        return []  # each part says the same
    return [Part.parse(line, names.stream, names.file) for line in text.splitlines()]


def streams(bucket: Bucket, ring: Ring) -> list[Known]:
    """All streams that have a beginning, each up to its first gap."""
    names = _named(bucket, rules.BINLOG)
    parts: dict[Stream, list[Part]] = {}
    merged: dict[Stream, list[Place]] = {}
    for part in _said(bucket, ring, names):
        parts.setdefault(part.place.stream, []).append(part)
    for one in names:
        merged.setdefault(one.stream, []).extend(one.merged)
    found = (rules.stream_of(stream, some, merged[stream]) for stream, some in parts.items())
    return [one for one in found if one]


def content(bucket: Bucket, ring: Ring, place: Place) -> tuple[Part, bytes]:
    """A part, and the bytes of the log that are in it. Raises DamagedError, MissingError."""
    stored = bucket.read(place.key)
    opened = ring.open(place.key, stored, most=2 * WINDOW + (1 << 20))
    said, _, data = opened.partition(b"\n")
    return Part.parse(said.decode(), place.stream, place.file), data


def piece(bucket: Bucket, ring: Ring, wanted: Piece) -> bytes:
    """The bytes of the log in a piece. Raises DamagedError, MissingError, naming the part."""
    if place := wanted.merged:
        # Its parts say the same, and are the archive.
        with suppress(DamagedError, MissingError):
            data = ring.open(place.merged, bucket.read(place.merged), most=WINDOW)
            if len(data) == place.end - place.start:
                return data
    return b"".join(content(bucket, ring, part.place)[1] for part in wanted.parts)


def _part(bucket: Bucket, ring: Ring, place: Place) -> Part:
    entry = bucket.find(place.key)
    said = entry.metadata.get("part", "") if entry else ""
    with suppress(ValueError):  # what it says was too long for its metadata: it is inside as well
        return Part.parse(said, place.stream, place.file)
    return content(bucket, ring, place)[0]


def _names(index: Path) -> list[Path]:
    """The logs that the server lists, oldest first."""
    try:
        lines = index.read_text().splitlines()
    except OSError as error:
        raise FlotillaError(f"{index} cannot be read: {error.strerror}") from error
    return [index.parent / line for line in lines if line.strip()]

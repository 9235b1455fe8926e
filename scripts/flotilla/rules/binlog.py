"""Read MySQL's binary logs as far as an archive must: where transactions begin, end, and are named.

An event is a header of 19 bytes (seconds, type, server id, length, position of the next event,
flags), a body, and four bytes of CRC-32. Only the events that name transactions are looked into;
what a transaction does is nobody's business here. Layouts are those of MySQL's
``mysql::binlog::event`` (libs/mysql/binlog/event/control_events.h); the tests compare with what
mysqlbinlog prints of real files.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import UUID

from flotilla.rules.gtid import GtidSet, Source

MAGIC = b"\xfebin"
HEADER, CHECKSUM = 19, 4
STOP, ROTATE, FORMAT, PREVIOUS_GTIDS = 3, 4, 15, 35
GTID, ANONYMOUS_GTID, TAGGED_GTID = 33, 34, 42
# The events that are looked into, and how long one may be: a set of a million intervals.
_NAMING = frozenset({FORMAT, PREVIOUS_GTIDS, GTID, TAGGED_GTID})
_NAMING_MOST = 32 << 20
_TYPE_AND_LENGTH = struct.Struct("<4xB4xI6x")
# Longer than any event a server writes: max_allowed_packet's limit and a header.
_MOST = (1 << 30) + 4096
# LOG_EVENT_BINLOG_IN_USE_F in the flags: the file is open, or its server crashed. Its checksum was
# made without.
_IN_USE, _FLAGS_AT = 0x1, 17
_TAGGED_FORMAT = 1
# A commit timestamp has 55 bits; the next one says that the original server's follows.
_HAS_ORIGINAL = 1 << 55


class BinlogError(ValueError):
    """Bytes that are no binary log, or damaged."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction's bytes in its file, [start, end).

    ``committed`` is when the server that took it committed it, in microseconds since the epoch.
    """

    source: Source
    number: int
    committed: int
    start: int
    end: int


@dataclass(slots=True)
class Reader:
    """Follows a file from its first byte, in pieces of any size, and keeps none of it.

    ``at`` is how far it was given; ``whole`` where the last thing ends that is complete (a
    transaction, or an event between two); ``previous`` all that was executed before the file;
    ``is_over`` once the server has closed the file and gone on to the next.
    """

    at: int = 0
    whole: int = 0
    previous: GtidSet | None = None
    is_over: bool = False
    _start: int = len(MAGIC)  # of the event that we are in
    _header: bytearray = field(default_factory=bytearray)
    _body: bytearray = field(default_factory=bytearray)
    _crc: int = 0
    _open: Transaction | None = None

    def feed(self, data: bytes) -> list[Transaction]:
        """The transactions that end in this piece. Raises BinlogError."""
        found: list[Transaction] = []
        view, at = memoryview(data), 0
        if self.at < len(MAGIC):
            wanted = MAGIC[self.at : self.at + len(data)]
            at = len(wanted)
            if bytes(view[:at]) != wanted:
                raise BinlogError(f"a binary log begins with {MAGIC!r}, not {data[:4]!r}")
        while at < len(view):
            if not self._header and (taken := self._take_whole(view[at:], found)):
                at += taken
            elif len(self._header) < HEADER:
                piece = view[at : at + HEADER - len(self._header)]
                self._header += piece
                at += len(piece)
                if len(self._header) == HEADER:
                    self._begin()
            else:
                taken = min(len(view) - at, self._end - (self.at + at))
                self._take(view[at : at + taken], self.at + at)
                at += taken
                if self.at + at == self._end:
                    self._check()
                    self._finish(self._kind, bytes(self._body[:-CHECKSUM]), self._end, found)
                    self._header.clear()
        self.at += len(data)
        return found

    def _take_whole(self, view: memoryview, found: list[Transaction]) -> int:
        """Take the events that are here as a whole; how many bytes they are.

        Nothing is copied of those that are not looked into: 34,000 small transactions took 0.9 s,
        and take 0.3 s. What is wrong, or in use, is left to who takes an event in pieces.
        """
        at, crc32 = 0, zlib.crc32
        while at + HEADER <= len(view):
            kind, length = _TYPE_AND_LENGTH.unpack_from(view, at)
            end, inside = at + length, at + length - CHECKSUM
            if end > len(view) or kind == FORMAT or self._unfit(kind, length):
                break
            if crc32(view[at:inside]) != int.from_bytes(view[inside:end], "little"):
                break
            body = bytes(view[at + HEADER : inside]) if kind in _NAMING else b""
            self._finish(kind, body, self._start + length, found)
            at = end
        return at

    @property
    def _kind(self) -> int:
        return self._header[4]

    @property
    def _length(self) -> int:
        return int.from_bytes(self._header[9:13], "little")

    @property
    def _end(self) -> int:
        return self._start + self._length

    def _unfit(self, kind: int, length: int) -> str:
        """Why there is no such event here; "" where there is."""
        most = _NAMING_MOST if kind in _NAMING else _MOST
        if not HEADER + CHECKSUM <= length <= most:
            return f"an event of {length} bytes"
        return "a transaction without a GTID" if kind == ANONYMOUS_GTID else ""

    def _begin(self) -> None:
        if unfit := self._unfit(self._kind, self._length):
            raise BinlogError(f"position {self._start}: {unfit}")
        header = bytearray(self._header)
        if self._kind == FORMAT:
            header[_FLAGS_AT] &= ~_IN_USE
        self._crc = zlib.crc32(header)
        self._body.clear()

    def _take(self, piece: memoryview, at: int) -> None:
        """Bytes of an event's body, or of the checksum after it."""
        inside = max(0, self._end - CHECKSUM - at)
        self._crc = zlib.crc32(piece[:inside], self._crc)
        if self._kind in _NAMING:
            self._body += piece
        else:
            self._body += piece[inside:]

    def _check(self) -> None:
        if self._crc != int.from_bytes(self._body[-CHECKSUM:], "little"):
            raise BinlogError(f"position {self._start}: the checksum of an event is wrong")

    def _finish(self, kind: int, body: bytes, end: int, found: list[Transaction]) -> None:
        """An event that is sound ends at ``end``; of one that is not looked into there is no body
        here.
        """
        self._note(kind, body)
        if self._open is None:
            self.whole = end
        elif end >= self._open.end:
            if end > self._open.end:
                raise BinlogError(f"position {self._open.end}: a transaction ends in an event")
            found.append(self._open)
            self._open, self.whole = None, end
        self._start = end

    def _note(self, kind: int, body: bytes) -> None:
        if kind in {GTID, TAGGED_GTID}:
            if self._open:
                raise BinlogError(f"position {self._start}: a transaction inside another")
            self._open = _named(kind, body, self._start)
        elif kind == PREVIOUS_GTIDS:
            self.previous = previous_gtids(body)
        elif kind in {STOP, ROTATE}:
            self.is_over = True


def previous_gtids(body: bytes) -> GtidSet:
    """The set in an event at the beginning of a file: all that was executed before it."""
    try:
        return _encoded_set(body)
    except (IndexError, ValueError, struct.error) as error:
        raise BinlogError(f"an event of previous GTIDs cannot be read ({error})") from error


def _named(kind: int, body: bytes, start: int) -> Transaction:
    try:
        if kind == GTID:
            source, number, committed, length = _gtid(body)
        else:
            source, number, committed, length = _tagged_gtid(body)
    except (IndexError, KeyError, ValueError) as error:
        raise BinlogError(f"position {start}: a GTID event cannot be read ({error})") from error
    return Transaction(source, number, committed, start, start + length)


def _gtid(body: bytes) -> tuple[Source, int, int, int]:
    """Flags, UUID, number, logical clock, timestamps, length of the transaction."""
    uuid, number = _uuid(body[1:17]), int.from_bytes(body[17:25], "little")
    at = 42
    committed = int.from_bytes(body[at : at + 7], "little")
    at += 7
    if committed & _HAS_ORIGINAL:
        committed, at = int.from_bytes(body[at : at + 7], "little"), at + 7
    return (uuid, ""), number, committed, _packed(body, at)


def _tagged_gtid(body: bytes) -> tuple[Source, int, int, int]:
    """Fields, each with its number before it, in growing order; those after the length are left."""
    at = 0
    for _ in range(3):  # version of the format, its size, the last field that must be understood
        _, at = _variable(body, at)
    source, found = ["", ""], dict[int, int]()
    while at < len(body):
        field_, at = _variable(body, at)
        if field_ == 1:
            octets = []
            for _ in range(16):
                octet, at = _variable(body, at)
                octets.append(octet)
            source[0] = _uuid(bytes(octets))
        elif field_ == 3:
            length, at = _variable(body, at)
            source[1], at = body[at : at + length].decode("ascii"), at + length
        elif field_ in {2, 4, 5}:
            found[field_], at = _signed(body, at)
        else:
            found[field_], at = _variable(body, at)
        if field_ >= 8:
            break
    return (source[0], source[1]), found[2], found.get(7, found[6]), found[8]


@lru_cache(maxsize=64)
def _uuid(octets: bytes) -> str:
    """A file names few servers, many times each."""
    return str(UUID(bytes=octets))


def _packed(body: bytes, at: int) -> int:
    """A length-encoded integer of the client protocol."""
    first = body[at] if at < len(body) else 0
    if first < 251:
        return first
    size = {252: 2, 253: 3, 254: 8}.get(first, 0)
    return int.from_bytes(body[at + 1 : at + 1 + size], "little")


def _encoded_set(body: bytes) -> GtidSet:
    header = int.from_bytes(body[:8], "little")
    tagged = header >> 56 == _TAGGED_FORMAT
    count = (header >> 8) & ((1 << 48) - 1) if tagged else header
    at, found = 8, GtidSet()
    for _ in range(count):
        uuid, at = _uuid(body[at : at + 16]), at + 16
        tag = ""
        if tagged:
            length, at = _variable(body, at)
            tag, at = body[at : at + length].decode("ascii"), at + length
        (number,) = struct.unpack_from("<q", body, at)
        at += 8
        intervals = struct.iter_unpack("<qq", body[at : at + 16 * number])
        # The end is the first number that is not in it.
        found |= GtidSet({(uuid, tag): tuple((a, b - 1) for a, b in intervals)})
        at += 16 * number
    return found


def _variable(body: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of mysql::serialization and where it ends.

    As many low bits of the first byte are set as bytes follow it; a zero bit ends them.
    """
    first, more = body[at], 0
    while more < 8 and first & (1 << more):
        more += 1
    if more == 8:
        return int.from_bytes(body[at + 1 : at + 9], "little"), at + 9
    value = int.from_bytes(body[at : at + 1 + more], "little") >> (more + 1)
    return value, at + 1 + more


def _signed(body: bytes, at: int) -> tuple[int, int]:
    """A signed one: its lowest bit is the sign, a negative number is stored as its complement."""
    value, at = _variable(body, at)
    return (-(value >> 1) - 1 if value & 1 else value >> 1), at

"""The archive of binary logs: its names, what a part says of itself, and how parts make a history.

    mysql/binlog/<term>/<server UUID>/<file>/<start>-<end>     bytes [start, end) of a file, sealed
    mysql/binlog/<term>/<server UUID>/<file>/parts-<end>       what some parts up to <end> say
    mysql/binlog/<term>/<server UUID>/<file>/parts             what all parts of a closed file say
    mysql/binlog/<term>/<server UUID>/<file>/merged-<start>-<end>      the bytes of some parts again

Each part says it too. To ask each would take a restore minutes: a file that is written to all day
has 100,000 of them, and that of a primary that died is never closed. To read each takes it minutes
too: ten minutes of logs are 1,200 parts, and 40 merged objects. What is merged is only ever a
quicker way to what the parts hold; they alone make the history.

A *stream* is what one server archived under one term of the record: names never collide after a
failover, and nothing is ever written over. Invariants of a history:

- Parts of a file follow each other without a gap from position 0, files by their numbers.
- A stream's first file begins with all that its server had executed before (``previous``); so the
  set that a stream knows is that and its transactions.
- What a former primary wrote and no later one knows was never acknowledged: it is no history.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from flotilla.rules.binlog import Transaction
from flotilla.rules.gtid import GtidSet

BINLOG = "mysql/binlog/"
LIST = "parts"
MERGED = "merged"
_KEY = re.compile(
    r"mysql/binlog/(?P<term>\d{6,})/(?P<uuid>[0-9a-f-]{36})/(?P<file>[^/]+\.\d+)/"
    rf"(?P<merged>{MERGED}-)?(?P<start>\d{{12,}})-(?P<end>\d{{12,}})"
)


@dataclass(frozen=True, slots=True, order=True)
class Stream:
    """Who archived: under which term, and the UUID of the server whose files they are."""

    term: int
    uuid: str

    @property
    def prefix(self) -> str:
        """What the names of all its objects begin with."""
        return f"{BINLOG}{self.term:06d}/{self.uuid}/"


@dataclass(frozen=True, slots=True)
class Tenure:
    """A stream while it is written; ``began`` is when its term was granted, in microseconds."""

    stream: Stream
    began: int


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes [start, end) of a file of a stream."""

    stream: Stream
    file: str
    start: int
    end: int

    @property
    def key(self) -> str:
        """Its object."""
        return f"{self.stream.prefix}{self.file}/{self.start:012d}-{self.end:012d}"

    @property
    def merged(self) -> str:
        """The object that holds the same bytes as some parts."""
        return f"{self.stream.prefix}{self.file}/{MERGED}-{self.start:012d}-{self.end:012d}"

    @classmethod
    def of(cls, key: str, *, merged: bool = False) -> Place | None:
        """The place that the key of a part names, or that of merged parts; None for another."""
        found = _KEY.fullmatch(key)
        if not found or bool(found["merged"]) is not merged:
            return None
        stream = Stream(int(found["term"]), found["uuid"])
        return cls(stream, found["file"], int(found["start"]), int(found["end"]))


@dataclass(frozen=True, slots=True)
class Part:
    """What a part says of itself. ``gtids`` are the transactions that end in it.

    ``first`` and ``last`` are the least and the greatest of their commit times, 0 for none;
    ``began`` is when the stream's term was granted; microseconds since the epoch. ``previous`` is
    in the first part of a file, ``is_over`` in the last.
    """

    place: Place
    gtids: GtidSet
    first: int
    last: int
    began: int
    previous: GtidSet | None = None
    is_over: bool = False

    def as_json(self) -> str:
        """One line."""
        found = {
            "start": self.place.start,
            "end": self.place.end,
            "gtids": str(self.gtids),
            "first": self.first,
            "last": self.last,
            "began": self.began,
            "previous": None if self.previous is None else str(self.previous),
            "over": self.is_over,
        }
        return json.dumps(found, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str, stream: Stream, file: str) -> Part:
        """Raises ValueError for what is none."""
        found = json.loads(text)
        try:
            previous = found["previous"]
            return cls(
                Place(stream, file, found["start"], found["end"]),
                GtidSet.parse(found["gtids"]),
                found["first"],
                found["last"],
                found["began"],
                None if previous is None else GtidSet.parse(previous),
                found["over"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no part of a binary log ({error})") from error


def number_of(file: str) -> int:
    """The number in a log file's name: they grow past six digits."""
    return int(file.rpartition(".")[2])


def first_to_send(
    files: Iterable[tuple[str, GtidSet]], archived: GtidSet, missing: GtidSet
) -> tuple[str, GtidSet]:
    """The file to begin a stream with, and what is missing before it.

    ``files`` are the server's, each with what was executed before it. ``archived`` is what the
    streams so far are known to have executed, and ``missing`` what of it is in none of their files.
    The newest file that begins with nothing but what is held loses nothing, and may close a gap;
    the newest that begins with what is known leaves the gap as it is; where there is neither, the
    oldest is all there is.
    """
    known = sorted(files, key=lambda one: number_of(one[0]))
    if not known:
        raise ValueError("the server has no binary log")
    for enough in (archived - missing, archived):
        fitting = [file for file, previous in known if previous <= enough]
        if fitting:
            return fitting[-1], missing
    return known[0][0], missing | (known[0][1] - archived)


@dataclass(frozen=True, slots=True)
class Known:
    """A stream as the archive has it: its parts in order, up to the first gap.

    ``wrong`` names the gap, "" where there is none. ``beyond`` are the parts after it: what they
    say was written, and nobody can get there. ``merged`` is what is stored once more in larger
    objects.
    """

    stream: Stream
    parts: tuple[Part, ...]
    wrong: str = ""
    beyond: tuple[Part, ...] = ()
    merged: tuple[Place, ...] = ()

    def pieces(self, file: str, wanted: GtidSet) -> list[Piece]:
        """What to read of one file for the wanted transactions, in order."""
        parts = [one for one in self.parts if one.place.file == file]
        merged = [one for one in self.merged if one.file == file]
        return pieces(needed(parts, wanted), merged)

    @property
    def began(self) -> int:
        """When its term was granted; microseconds since the epoch."""
        return self.parts[0].began

    @property
    def gtids(self) -> GtidSet:
        """All its server is known to have executed."""
        told = (part.previous or GtidSet() for part in self.beyond)
        parts = (part.gtids for part in (*self.parts, *self.beyond))
        return union([self.parts[0].previous or GtidSet(), *parts, *told])


def stream_of(stream: Stream, parts: Iterable[Part], merged: Iterable[Place] = ()) -> Known | None:
    """The stream that these parts are; up to the first gap. None without a beginning."""
    by_file: dict[str, list[Part]] = {}
    for part in parts:
        by_file.setdefault(part.place.file, []).append(part)
    found: list[Part] = []
    beyond: list[Part] = []
    wrong = ""
    for file in sorted(by_file, key=number_of):
        rows = sorted(by_file[file], key=lambda part: (part.place.start, -part.place.end))
        wrong = wrong or (_file_gap(found[-1], file) if found else "")
        if wrong:
            beyond += rows
            continue
        kept, wrong = _contiguous(rows)
        found += kept
        beyond += rows[len(kept) :] if wrong else []
    if not found:
        return None
    return Known(stream, tuple(found), wrong, tuple(beyond), tuple(merged))


def _contiguous(rows: Sequence[Part]) -> tuple[list[Part], str]:
    """Parts that follow each other from 0. Of two that begin alike (a run that was cut off before
    it knew what it had sent) the longer one is taken.
    """
    kept: list[Part] = []
    at = 0
    for part in rows:
        if part.place.start == at and part.place.end > at:
            kept.append(part)
            at = part.place.end
        elif part.place.start > at:
            return kept, f"{part.place.stream.prefix}{part.place.file} lacks bytes from {at} on"
    return kept, ""


def _file_gap(last: Part, file: str) -> str:
    where = f"{last.place.stream.prefix}{last.place.file}"
    if not last.is_over:
        return f"{where} ends at {last.place.end}, before its server closed it"
    if number_of(file) != number_of(last.place.file) + 1:
        return f"{where} is followed by {file}"
    return ""


@dataclass(frozen=True, slots=True)
class Replay:
    """How to get there from a base: the files of each stream whose transactions are needed, in
    order; only those in ``gtids`` are applied.
    """

    base: str
    gtids: GtidSet
    files: tuple[tuple[Stream, str], ...]


def history(streams: Iterable[Known], until: int | None) -> GtidSet | str:
    """What a client of the cluster could have read at ``until`` (microseconds since the epoch; None
    for all there is), as a set; or the reason why that is not known.

    The last term that had begun by then decides: what its streams had committed, and what their
    servers had executed before. Where they do not reach the beginning of their own term yet, an
    archive in the middle of catching up, the term before counts as well. What a primary wrote last
    may have been archived by its successor only, from the successor's own files. Of all that, what
    a later term does not know was never acknowledged.
    """
    by_term: dict[int, list[Known]] = {}
    for one in streams:
        by_term.setdefault(one.stream.term, []).append(one)
    if not by_term:
        return "there is no archive of binary logs"
    begun = [t for t, known in by_term.items() if until is None or known[0].began <= until]
    if not begun:
        first = by_term[min(by_term)][0].began
        return f"the archive begins with {when(first)}, and {when(until or 0)} is before"
    reached = GtidSet()
    for term in sorted(begun, reverse=True):
        reached |= union(up_to(one, until) for one in by_term[term])
        if any(map(covers, by_term[term])):
            break
    after = sorted(term for term in by_term if term > max(begun))
    for term in after:
        # Not what was executed before its files: of that, nobody says when.
        reached |= union(_told(one, until) for one in by_term[term])
    next_term = next((term for term in after if any(map(covers, by_term[term]))), None)
    if next_term is None:
        return reached
    return reached & union(one.gtids for one in by_term[next_term])


def covers(known: Known) -> bool:
    """Whether a stream reaches the beginning of its own term: from there on it lacks nothing."""
    return any(part.last >= known.began for part in known.parts)


def up_to(known: Known, until: int | None) -> GtidSet:
    """What the stream's server had executed before its first later transaction."""
    return (known.parts[0].previous or GtidSet()) | _told(known, until)


def _told(known: Known, until: int | None) -> GtidSet:
    """What its files say of that.

    Parts count as a whole: those that ``straddling`` names are to be split before. What lies beyond
    a gap counts too, as far as it is surely not later: that there is no way to it must show.
    """
    found = GtidSet()
    for part in known.parts:
        if until is not None and part.first > until:
            return found
        found |= part.gtids
    for part in known.beyond:
        if until is None or part.first <= until:
            found |= part.previous or GtidSet()
        if until is None or part.last <= until:
            found |= part.gtids
    return found


def needed(parts: Sequence[Part], wanted: GtidSet) -> list[Part]:
    """Of a file's parts, in order, those to read for the wanted transactions.

    The first says how to read the others. One in which no transaction ends may be the beginning of
    one that ends in the next: a part is whole transactions, or a piece of a single one.
    """
    found: list[Part] = []
    is_wanted = False
    for part in reversed(parts):
        is_wanted = bool(part.gtids & wanted) or (is_wanted and not part.gtids)
        if is_wanted or part.place.start == 0:
            found.append(part)
    return found[::-1]


@dataclass(frozen=True, slots=True)
class Piece:
    """What to read next: one part, or ``merged`` with what its ``parts`` hold, in order."""

    parts: tuple[Part, ...]
    merged: Place | None = None


def pieces(parts: Sequence[Part], merged: Iterable[Place]) -> list[Piece]:
    """How to read parts of one file with the fewest objects: the same bytes, in the same order.

    What was merged is taken where all of it is wanted: of an object with more in it the rest could
    be half a transaction. A restart of the archiver begins anew, so that two may overlap.
    """
    by_start: dict[int, list[Place]] = {}
    for one in sorted(merged, key=lambda place: -place.end):
        by_start.setdefault(one.start, []).append(one)
    found: list[Piece] = []
    at = 0
    while at < len(parts):
        run, place = _run(parts, at, by_start.get(parts[at].place.start, ()))
        found.append(Piece(tuple(parts[at : at + run]), place))
        at += run
    return found


def _run(parts: Sequence[Part], at: int, merged: Iterable[Place]) -> tuple[int, Place | None]:
    """How many parts from ``at`` on are in the longest that fits, and which that is."""
    for place in merged:
        end = parts[at].place.start
        for number, part in enumerate(parts[at:], 1):
            if part.place.start != end or part.place.end > place.end:
                break
            end = part.place.end
            if end == place.end:
                return number, place
    return 1, None


def gone(promised: GtidSet, streams: Iterable[Known]) -> GtidSet:
    """What was archived once and no stream has any more: somebody deleted the objects.

    What a former primary alone had may be promised too, it is archived before it is acknowledged:
    it is in that one's stream, and no history.
    """
    return promised - union(one.gtids for one in streams)


def straddling(known: Known, until: int) -> Part | None:
    """The first part with a transaction after ``until``, if it may have earlier ones as well."""
    late = next((part for part in known.parts if part.last > until), None)
    return late if late is not None and late.first <= until else None


def split(known: Known, part: Part, transactions: Iterable[Transaction], until: int) -> Known:
    """The stream with that part in two: before its first transaction after ``until``, and after."""
    rows = list(transactions)
    cut = next((n for n, one in enumerate(rows) if one.committed > until), len(rows))
    before, after = rows[:cut], rows[cut:]
    halves = (
        replace(part, gtids=_set(before), last=max((t.committed for t in before), default=0)),
        replace(part, gtids=_set(after), first=until + 1, previous=None),
    )
    at = known.parts.index(part)
    return replace(known, parts=(*known.parts[:at], *halves, *known.parts[at + 1 :]))


@dataclass(frozen=True, slots=True)
class Base:
    """A full backup: it holds all of ``least`` and nothing but ``most``."""

    least: GtidSet
    most: GtidSet


def plan(bases: Mapping[str, Base], streams: Iterable[Known], target: GtidSet) -> Replay | str:
    """The newest base that holds nothing beyond the target, and the files that lead there from it;
    or the reason why there is no way.
    """
    if not bases:
        return "there is no full backup"
    fitting = sorted(name for name, base in bases.items() if base.most <= target)
    if not fitting:
        oldest = min(bases)
        return (
            f"the oldest full backup, {oldest}, already holds transactions that the target has not:"
            f" {_short(bases[oldest].most - target)}"
        )
    base = fitting[-1]
    wanted = left = target - bases[base].least
    known = sorted((one for one in streams if one.parts), key=lambda one: one.stream)
    files: list[tuple[Stream, str]] = []
    for one in known:
        for part in one.parts:
            place = (one.stream, part.place.file)
            if part.gtids & left and place not in files:
                files.append(place)
        left = left - union(part.gtids for part in one.parts)
    if left:
        gaps = "; ".join(one.wrong for one in known if one.wrong)
        return f"{len(left)} transactions are in no binary log of the archive: {_short(left)}" + (
            f" ({gaps})" if gaps else ""
        )
    return Replay(base, wanted, tuple(files))


def _set(transactions: Iterable[Transaction]) -> GtidSet:
    return GtidSet.of((one.source, one.number) for one in transactions)


def union(sets: Iterable[GtidSet]) -> GtidSet:
    """All that is in any of them."""
    found = GtidSet()
    for one in sets:
        found |= one
    return found


def _short(gtids: GtidSet, most: int = 300) -> str:
    text = str(gtids)
    return text if len(text) <= most else f"{text[:most]}..."


def when(microseconds: int) -> str:
    """Microseconds since the epoch, for people."""
    moment = datetime.fromtimestamp(microseconds / 1e6, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S.%f} UTC"

"""GTID sets where no server is at hand to compute with: in front of an archive, before a restore.

A set is what MySQL writes as ``uuid:1-5:9,uuid:tag:1-3``: for every source (a server's UUID, and a
tag or none) the closed intervals of its transaction numbers. While a server runs, its own functions
decide (``flotilla.hosts.mysql.differences``); the tests hold this against them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TAG = re.compile(r"[a-z_][a-z0-9_]{0,31}")
_INTERVAL = re.compile(r"(\d{1,19})(?:-(\d{1,19}))?")

Source = tuple[str, str]  # UUID and tag, both in lower case; no tag is ""
Intervals = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class GtidSet:
    """Sources to their intervals: sorted, apart from each other, never empty."""

    sources: Mapping[Source, Intervals] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> GtidSet:
        """The set that MySQL writes so. Raises ValueError naming the part that is none."""
        found: dict[Source, list[tuple[int, int]]] = {}
        for group in filter(None, "".join(text.lower().split()).split(",")):
            uuid, *parts = group.split(":")
            if not _UUID.fullmatch(uuid):
                raise ValueError(f"{uuid[:40]!r} in a GTID set is no server's UUID")
            tag = ""
            for part in parts:
                interval = _INTERVAL.fullmatch(part)
                if interval:
                    start, end = int(interval[1]), int(interval[2] or interval[1])
                    if not 0 < start <= end:
                        raise ValueError(f"{part!r} in a GTID set is no interval")
                    found.setdefault((uuid, tag), []).append((start, end))
                elif _TAG.fullmatch(part):
                    tag = part
                else:
                    raise ValueError(f"{part[:40]!r} in a GTID set is no interval and no tag")
        return cls({source: _merged(parts) for source, parts in found.items()})

    @classmethod
    def of(cls, gtids: Iterable[tuple[Source, int]]) -> GtidSet:
        """The set of single transactions."""
        found: dict[Source, list[tuple[int, int]]] = {}
        for source, number in gtids:
            found.setdefault(source, []).append((number, number))
        return cls({source: _merged(parts) for source, parts in found.items()})

    def __str__(self) -> str:
        """As MySQL writes it, on one line."""
        by_uuid: dict[str, list[str]] = {}
        for (uuid, tag), intervals in sorted(self.sources.items()):
            texts = [str(a) if a == b else f"{a}-{b}" for a, b in intervals]
            by_uuid.setdefault(uuid, []).extend([tag, *texts] if tag else texts)
        return ",".join(":".join([uuid, *texts]) for uuid, texts in by_uuid.items())

    def __bool__(self) -> bool:
        return bool(self.sources)

    def __contains__(self, gtid: tuple[Source, int]) -> bool:
        source, number = gtid
        return any(a <= number <= b for a, b in self.sources.get(source, ()))

    def __or__(self, other: GtidSet) -> GtidSet:
        sources = {*self.sources, *other.sources}
        return GtidSet(
            {s: _merged([*self.sources.get(s, ()), *other.sources.get(s, ())]) for s in sources}
        )

    def __sub__(self, other: GtidSet) -> GtidSet:
        found = {
            source: tuple(_without(intervals, other.sources.get(source, ())))
            for source, intervals in self.sources.items()
        }
        return GtidSet({source: intervals for source, intervals in found.items() if intervals})

    def __and__(self, other: GtidSet) -> GtidSet:
        return self - (self - other)

    def __le__(self, other: GtidSet) -> bool:
        return not self - other

    def __len__(self) -> int:
        """How many transactions."""
        return sum(b - a + 1 for intervals in self.sources.values() for a, b in intervals)


def _merged(intervals: Iterable[tuple[int, int]]) -> Intervals:
    found: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def _without(intervals: Intervals, others: Intervals) -> Iterator[tuple[int, int]]:
    for start, end in intervals:
        at = start
        for other_start, other_end in others:
            if other_end < at or other_start > end:
                continue
            if other_start > at:
                yield at, other_start - 1
            at = other_end + 1
        if at <= end:
            yield at, end

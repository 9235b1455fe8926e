"""Whatever primaries came and went, an archive knows what clients could have read at any moment.

A model makes clusters' histories: terms with a primary each, whose log begins somewhere before its
term; what it wrote last may not have been sent, or nobody acknowledged it and no later one has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.archive import (
    Base,
    Known,
    Part,
    Place,
    Stream,
    first_to_send,
    gone,
    history,
    needed,
    pieces,
    plan,
    split,
    straddling,
    stream_of,
)
from flotilla.rules.binlog import Transaction
from flotilla.rules.gtid import GtidSet


def uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


@dataclass(frozen=True)
class Row:
    gtid: tuple[tuple[str, str], int]
    at: int


@dataclass(frozen=True)
class Model:
    """All that survived, in order; each term's log from its first archived file on."""

    truth: list[Row]
    logs: list[tuple[Stream, int, GtidSet, list[Row]]]

    def had(self, until: int | None) -> GtidSet:
        return GtidSet.of(one.gtid for one in self.truth if until is None or one.at <= until)

    def streams(self, sizes: list[int]) -> list[Known]:
        found = []
        for stream, began, previous, rows in self.logs:
            parts, at, left, number = [], 0, rows, 0
            while left or not parts:
                size = sizes[number % len(sizes)]
                some, left, number = left[:size], left[size:], number + 1
                part = Part(
                    Place(stream, "binlog.000001", at, at + 10 + len(some)),
                    GtidSet.of(one.gtid for one in some),
                    min((one.at for one in some), default=0),
                    max((one.at for one in some), default=0),
                    began,
                    previous if at == 0 else None,
                )
                at = part.place.end
                parts.append(part)
            known = stream_of(stream, parts)
            assert known is not None
            assert not known.wrong
            found.append(known)
        return found


@st.composite
def models(draw: st.DrawFn) -> Model:
    truth: list[Row] = []
    logs = []
    clock = 1000
    terms = draw(st.integers(1, 4))
    for term in range(1, terms + 1):
        since = draw(st.integers(0, len(truth)))
        if logs:
            # The primary before died with some of its last rows not sent.
            sent = logs[-1][3]
            for _ in range(draw(st.integers(0, 3))):
                if sent and (sent[-1] not in truth or truth.index(sent[-1]) >= since):
                    sent.pop()
        clock += draw(st.integers(1, 50))
        began = clock
        own = []
        for number in range(1, draw(st.integers(1, 8)) + 1):
            own.append(Row(((uuid(term), ""), number), clock))
            clock += draw(st.integers(1, 20))
        rows = [*truth[since:], *own]
        previous = GtidSet.of(one.gtid for one in truth[:since])
        truth += own
        if term < terms:
            for number in range(draw(st.integers(0, 2))):
                lost = Row(((uuid(term), ""), len(own) + 1 + number), clock)
                rows.append(lost)
                clock += draw(st.integers(1, 20))
        logs.append((Stream(term, uuid(term)), began, previous, rows))
    return Model(truth, logs)


def exact(model: Model, known: Known, until: int) -> Known:
    """As the edge does it: the part that goes past the moment is opened."""
    part = straddling(known, until)
    if part is None:
        return known
    rows = next(rows for stream, _, _, rows in model.logs if stream == known.stream)
    mine = [one for one in rows if one.gtid in part.gtids]
    transactions = [Transaction(one.gtid[0], one.gtid[1], one.at, 0, 1) for one in mine]
    return split(known, part, transactions, until)


@given(models(), st.lists(st.integers(1, 4), min_size=1))
def test_what_is_in_any_stream_is_not_gone_and_what_was_deleted_is(
    model: Model, sizes: list[int]
) -> None:
    streams = model.streams(sizes)
    promised = GtidSet()
    for one in streams:
        promised |= one.gtids
    assert not gone(promised, streams)
    assert gone(promised | GtidSet.of([((uuid(999), ""), 1)]), streams)
    (*before, last) = sorted(streams, key=lambda one: one.stream)
    shorter = replace(last, parts=last.parts[:-1])
    if shorter.parts:
        lost = last.parts[-1].gtids
        for one in (*before, shorter):
            lost -= one.gtids
        assert gone(promised, [*before, shorter]) == lost


@given(models(), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_history_is_what_survived(model: Model, sizes: list[int], draw: st.DataObject) -> None:
    streams = model.streams(sizes)
    last = max(one.at for one in model.truth)
    until = draw.draw(st.integers(model.logs[0][1], last + 10))
    known = [exact(model, one, until) for one in streams]
    assert history(known, until) == model.had(until)
    assert history(streams, None) == model.had(None)


@given(models(), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_a_way_leads_exactly_there_or_names_what_is_missing(
    model: Model, sizes: list[int], draw: st.DataObject
) -> None:
    streams = model.streams(sizes)
    target = model.had(None)
    base_at = draw.draw(st.integers(0, len(model.truth)))
    base = GtidSet.of(one.gtid for one in model.truth[:base_at])
    # The copy holds something between what was executed before and after it.
    least_at = draw.draw(st.integers(0, base_at))
    least = GtidSet.of(one.gtid for one in model.truth[:least_at])
    gone = draw.draw(st.sampled_from([None, *streams]))
    left = [one for one in streams if one is not gone]
    found = plan({"b": Base(least, base)}, left, target)
    there = least
    for one in left:
        for part in one.parts:
            there = there | part.gtids
    if isinstance(found, str):
        assert str(next(iter((target - there).sources))[0]) in found
        assert not target <= there
    else:
        assert found.base == "b"
        assert found.gtids == target - least
        assert target <= there
        # What two terms archived is taken once.
        led = GtidSet()
        for one in left:
            for part in one.parts:
                led |= part.gtids if (one.stream, part.place.file) in found.files else GtidSet()
        assert found.gtids <= led
        assert list(found.files) == sorted(set(found.files))


def test_the_newest_base_that_is_not_beyond_the_target_is_taken() -> None:
    one, two, three = (GtidSet.parse(f"{uuid(1)}:1-{n}") for n in (1, 2, 3))
    found = plan({"a": Base(one, one), "b": Base(two, two), "c": Base(two, three)}, [], two)
    assert not isinstance(found, str)
    assert found.base == "b"
    assert found.files == ()
    assert "already holds" in str(plan({"c": Base(two, three)}, [], two))
    assert plan({}, [], two) == "there is no full backup"


def part(start: int, end: int, file: str = "binlog.000001", **more: object) -> Part:
    place = Place(Stream(1, uuid(1)), file, start, end)
    made = Part(place, GtidSet(), 0, 0, 0, GtidSet() if start == 0 else None)
    return replace(made, **more)


def test_a_gap_ends_what_is_known_and_is_named() -> None:
    known = stream_of(Stream(1, uuid(1)), [part(0, 5), part(6, 9)])
    assert known is not None
    assert [one.place.end for one in known.parts] == [5]
    assert "lacks bytes from 5 on" in known.wrong


def test_a_file_that_was_not_closed_ends_what_is_known() -> None:
    rows = [part(0, 5), part(0, 5, "binlog.000002")]
    known = stream_of(Stream(1, uuid(1)), rows)
    assert known is not None
    assert len(known.parts) == 1
    assert "before its server closed it" in known.wrong


def test_a_missing_file_is_named() -> None:
    rows = [part(0, 5, is_over=True), part(0, 5, "binlog.000003")]
    known = stream_of(Stream(1, uuid(1)), rows)
    assert known is not None
    assert "is followed by binlog.000003" in known.wrong


def test_of_two_parts_that_begin_alike_the_longer_counts() -> None:
    known = stream_of(Stream(1, uuid(1)), [part(0, 5), part(0, 8), part(8, 9)])
    assert known is not None
    assert [one.place.end for one in known.parts] == [8, 9]
    assert not known.wrong


@given(st.lists(st.integers(0, 3), min_size=1), st.sets(st.integers(1, 40)))
def test_what_is_read_of_a_file_has_every_wanted_transaction_whole(
    ends: list[int], some: set[int]
) -> None:
    """``ends``: how many transactions end in each part; none: it is a piece of a larger one."""
    parts, number, held = [], 1, dict[int, set[int]]()
    begun: set[int] = set()
    for at, count in enumerate(ends):
        gtids = GtidSet.of(((uuid(1), ""), number + i) for i in range(count))
        parts.append(part(at * 10, at * 10 + 10, gtids=gtids))
        begun.add(at)
        for i in range(count):
            # The part begins with the rest of its first one, whichever is wanted.
            held[number + i] = begun
        if count:
            number, begun = number + count, set()
    wanted = GtidSet.of(((uuid(1), ""), one) for one in some if one < number)
    read = needed(parts, wanted)
    assert read == sorted(read, key=lambda one: one.place.start)
    assert read[0] == parts[0]
    there = {parts.index(one) for one in read}
    assert all(held[one] <= there for one in some if one < number)
    # Nothing but that, the beginning, and pieces of what is wanted.
    rest = there - {0} - set().union(*(held[one] for one in some if one < number), set())
    assert not rest


@given(
    st.sets(st.integers(0, 30), min_size=1),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12))),
)
def test_what_is_merged_never_changes_which_bytes_are_read(
    some: set[int], runs: list[tuple[int, int]]
) -> None:
    parts = [part(at * 10, at * 10 + 10) for at in sorted(some)]
    merged = [replace(part(at * 10, (at + many) * 10).place) for at, many in runs]
    found = pieces(parts, merged)
    assert [one for piece in found for one in piece.parts] == parts
    for piece in found:
        place = piece.merged
        assert place is None or place in merged
        if place is None:
            assert len(piece.parts) == 1
        else:
            assert (piece.parts[0].place.start, piece.parts[-1].place.end) == (
                place.start,
                place.end,
            )
            assert len(piece.parts) * 10 == place.end - place.start


def test_merged_parts_are_no_parts() -> None:
    place = part(5, 9).place
    assert Place.of(place.key) == place
    assert Place.of(place.merged) is None
    assert Place.of(place.merged, merged=True) == place
    assert Place.of(place.key, merged=True) is None


def test_a_stream_without_its_beginning_is_none() -> None:
    assert stream_of(Stream(1, uuid(1)), [part(5, 9)]) is None


def test_an_archive_that_catches_up_does_not_hide_the_term_before() -> None:
    """All hosts vanish while the new primary still sends its old files: nothing is lost by it."""
    old = Known(
        Stream(1, uuid(1)),
        (replace(part(0, 9), gtids=GtidSet.parse(f"{uuid(1)}:1-9"), first=10, last=90, began=5),),
    )
    place = Place(Stream(2, uuid(2)), "binlog.000001", 0, 5)
    new = Known(
        Stream(2, uuid(2)),
        (Part(place, GtidSet.parse(f"{uuid(1)}:1-4"), 10, 40, 100, GtidSet()),),
    )
    assert history([old, new], None) == GtidSet.parse(f"{uuid(1)}:1-9")


def test_reasons_why_nothing_is_known() -> None:
    assert history([], None) == "there is no archive of binary logs"
    known = Known(Stream(1, uuid(1)), (part(0, 5, began=2_000_000),))
    assert "the archive begins with 1970-01-01 00:00:02" in str(history([known], 1_000_000))


def test_a_stream_begins_with_the_newest_file_that_loses_nothing() -> None:
    sets = [GtidSet.parse(f"{uuid(1)}:1-{n}") for n in (10, 20, 30)]
    files = [(f"binlog.{n:06}", one) for n, one in enumerate(sets, 1)]
    none = GtidSet()
    assert first_to_send(files, sets[1], none) == ("binlog.000002", none)
    assert first_to_send(files, sets[2], none) == ("binlog.000003", none)
    name, missing = first_to_send(files, GtidSet.parse(f"{uuid(1)}:1-5"), none)
    assert (name, str(missing)) == ("binlog.000001", f"{uuid(1)}:6-10")
    # A gap that this server can close is closed; one that it cannot close stays one.
    gap = GtidSet.parse(f"{uuid(1)}:15")
    assert first_to_send(files, sets[2], gap) == ("binlog.000001", gap)
    assert first_to_send(files, sets[2], missing) == ("binlog.000003", missing)
    with pytest.raises(ValueError, match="no binary log"):
        first_to_send([], none, none)


hosts = st.tuples(st.integers(0, 8), st.lists(st.integers(1, 5), min_size=1, max_size=6))


@given(st.lists(hosts, max_size=6))
def test_what_no_archiver_sent_is_missing_whoever_archives_afterwards(
    turns: list[tuple[int, list[int]]],
) -> None:
    """Each host has purged its logs up to somewhere, and sends from one of its files to the end."""
    archived, missing, sent, executed = GtidSet(), GtidSet(), GtidSet(), 0
    for purged, sizes in turns:
        ends = [min(purged, executed)]
        for size in sizes:
            ends.append(ends[-1] + size)
        executed = ends[-1] = max(executed, ends[-1])
        files = [(f"binlog.{n:06}", up_to_number(end)) for n, end in enumerate(ends[:-1], 1)]
        name, missing = first_to_send(files, archived, missing)
        before = dict(files)[name]
        mine = up_to_number(executed) - before
        archived |= mine | before
        sent |= mine
        missing -= mine
        assert missing == archived - sent


def up_to_number(number: int) -> GtidSet:
    return GtidSet.of(((uuid(1), ""), n) for n in range(1, number + 1))


def test_names_are_read_again() -> None:
    place = Place(Stream(12, uuid(1)), "binlog.1000001", 5, 10**13)
    assert Place.of(place.key) == place
    assert Place.of(f"{place.stream.prefix}binlog.000001/parts") is None
    made = Part(place, GtidSet.parse(f"{uuid(1)}:1"), 1, 2, 3, GtidSet(), is_over=True)
    assert Part.parse(made.as_json(), place.stream, place.file) == made
    keys = [replace(place, start=a, end=b).key for a, b in ((0, 5), (5, 90), (90, 1000))]
    assert all(a < b for a, b in pairwise(keys))

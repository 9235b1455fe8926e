"""What counts as lost, and how long is a gap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.ledger import (
    Entry,
    Fate,
    dual_seconds,
    fate_of,
    longest_gap,
    summarise,
    writable_spans,
)

fates = st.sampled_from(Fate)


@st.composite
def entries(draw):
    times = draw(st.lists(st.floats(0, 100), min_size=1, max_size=30))
    return [
        Entry(str(n), start, start + draw(st.floats(0, 5)), draw(fates))
        for n, start in enumerate(times)
    ]


def entry(name, at, fate=Fate.ACKED):
    return Entry(name, at, at, fate)


@given(entries(), st.data())
def test_only_an_acknowledged_write_can_be_lost(written, data):
    there = data.draw(st.sets(st.sampled_from([e.id for e in written])))
    lost = summarise(written, dict.fromkeys(there, "u")).lost
    assert set(lost) == {e.id for e in written if e.fate is Fate.ACKED} - there


@given(entries())
def test_every_try_is_counted_once(written):
    found = summarise(written, {})
    assert found.acked + found.failed + found.unknown == len(written)


@given(entries())
def test_a_gap_is_never_longer_than_the_run_and_holds_no_acknowledgement(written):
    acked = [e for e in written if e.fate is Fate.ACKED]
    gap, since = longest_gap(written)
    assert since is not None
    assert 0 <= gap <= max(e.ended for e in written) - min(e.started for e in written)
    assert not [e for e in acked if since < e.ended < since + gap - 1e-9]


def test_a_database_that_never_comes_back_has_a_gap_to_the_end():
    written = [entry("a", 0), entry("b", 1), entry("c", 9, Fate.FAILED)]
    assert longest_gap(written) == (8, 1)


def test_rows_are_counted_by_the_server_that_took_them():
    found = summarise([entry("a", 0), entry("b", 1)], {"a": "old", "b": "new"})
    assert found.servers == {"old": 1, "new": 1}


def test_an_empty_ledger_saw_nothing():
    assert summarise([], {}).write_gap_seconds == 0


def test_a_gap_is_looked_for_where_it_is_asked_for_and_counted_whole():
    written = [entry(str(at), at) for at in (0, 1, 4, 5, 7, 8)]
    assert longest_gap(written) == (3, 1)
    assert longest_gap(written, begin=4.5) == (2, 5)
    assert longest_gap(written, end=0.5) == (1, 0)
    assert longest_gap(written, begin=2, end=3) == (3, 1)
    assert longest_gap(written, begin=9) == (0.0, None)


def test_a_row_whose_writer_was_told_nothing_is_counted_when_it_is_there():
    written = [entry("a", 0), entry("b", 1, Fate.UNKNOWN), entry("c", 2, Fate.UNKNOWN)]
    found = summarise(written, {"a": "u", "b": "u"})
    assert (found.unknown, found.unknown_there, found.lost) == (2, 1, ())


@pytest.mark.parametrize(
    ("code", "sent", "fate"),
    [
        (1290, True, Fate.FAILED),  # read-only
        (3032, False, Fate.FAILED),  # offline mode, at the door
        (1040, False, Fate.FAILED),  # too many connections
        (2013, True, Fate.UNKNOWN),  # the connection broke
        (0, True, Fate.UNKNOWN),  # a socket's own error
        (2003, False, Fate.FAILED),  # nobody there
        (1053, True, Fate.UNKNOWN),  # shutdown in progress
        (1317, True, Fate.UNKNOWN),  # interrupted
        (1180, True, Fate.UNKNOWN),  # error during commit
    ],
)
def test_only_a_server_that_says_so_proves_that_nothing_was_written(code, sent, fate):
    assert fate_of(code, sent=sent) is fate


# --- two servers at once --------------------------------------------------------------------------


def taken(server, *times, fate=Fate.ACKED, late=0.0):
    return [Entry(f"{server}{at}", at, at + late, fate, server=server) for at in times]


def both(entries, apart=1.0, least=0.05):
    return dual_seconds(writable_spans(entries, apart), least)


def test_a_role_that_moves_is_at_no_time_in_two_places():
    assert both(taken("a", 0, 0.1, 0.2) + taken("b", 0.5, 0.6)) == 0


def test_two_servers_that_acknowledge_in_turns_are_both_writable_all_the_while():
    found = both(taken("a", 0, 0.2, 0.4, 0.6) + taken("b", 0.3, 0.5, 0.7))
    assert found == pytest.approx(0.3)


def test_one_write_acknowledged_in_the_middle_of_the_other_s_time_counts_as_a_moment():
    assert both(taken("a", 0, 0.5, 1.0) + taken("b", 0.6)) == pytest.approx(0.05)


def test_an_acknowledgement_that_comes_late_is_of_the_time_when_the_write_began():
    """A frozen primary's client hears after the thaw what was acknowledged before the freeze."""
    assert both(taken("a", 0, 0.1) + taken("a", 0.2, late=60) + taken("b", 3, 3.5, 61)) == 0


def test_a_role_that_goes_and_comes_back_is_not_in_two_places_meanwhile():
    found = taken("a", 0, 0.4) + taken("a", 0.5, fate=Fate.FAILED) + taken("b", 0.6, 0.8)
    assert both(found + taken("a", 1.0, 1.2)) == 0


def test_silence_proves_nothing():
    assert both(taken("a", 0, 0.4, 9, 9.4) + taken("b", 3, 3.5)) == 0


def test_three_servers_at_once_count_once():
    every = [one for server in "abc" for one in taken(server, 0, 0.5, 1.0)]
    assert both(every) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 50), fates), max_size=40))
def test_one_server_alone_is_never_two(written):
    every = [Entry(str(n), at, at, fate, server=s) for n, (s, at, fate) in enumerate(written)]
    spans = writable_spans(every, 1.0)
    assert set(spans) == {e.server for e in every if e.fate is Fate.ACKED}
    for server, found in spans.items():
        assert dual_seconds({server: found}, 0.05) == 0
        assert all(first <= last for first, last in found)
    least = 0.05
    total = sum(last - first + least for found in spans.values() for first, last in found)
    assert 0 <= dual_seconds(spans, least) <= total + 1e-9

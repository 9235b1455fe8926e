"""What counts as lost, and how long is a gap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.ledger import Entry, Fate, longest_gap, summarise

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
    gap, since = longest_gap(written, acked)
    assert since is not None
    assert 0 <= gap <= max(e.ended for e in written) - min(e.started for e in written)
    assert not [e for e in acked if since < e.ended < since + gap - 1e-9]


def test_a_database_that_never_comes_back_has_a_gap_to_the_end():
    written = [entry("a", 0), entry("b", 1), entry("c", 9, Fate.FAILED)]
    assert longest_gap(written, written[:2]) == (8, 1)


def test_rows_are_counted_by_the_server_that_took_them():
    found = summarise([entry("a", 0), entry("b", 1)], {"a": "old", "b": "new"})
    assert found.servers == {"old": 1, "new": 1}


def test_an_empty_ledger_saw_nothing():
    assert summarise([], {}).write_gap_seconds == 0

"""GTID sets behave as sets of transactions do, and are written as MySQL writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.gtid import GtidSet

UUIDS = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
gtids = st.tuples(
    st.tuples(st.sampled_from(UUIDS), st.sampled_from(["", "blue", "green"])), st.integers(1, 12)
)
sets = st.frozensets(gtids, max_size=25)


@given(sets, sets)
def test_it_is_a_set(a: frozenset, b: frozenset) -> None:
    one, two = GtidSet.of(a), GtidSet.of(b)
    assert one | two == GtidSet.of(a | b)
    assert one - two == GtidSet.of(a - b)
    assert one & two == GtidSet.of(a & b)
    assert (one <= two) == (a <= b)
    assert len(one) == len(a)
    assert bool(one) == bool(a)
    assert all((g in one) == (g in a) for g in a | b)


@given(sets)
def test_what_is_written_is_read_again(a: frozenset) -> None:
    one = GtidSet.of(a)
    assert GtidSet.parse(str(one)) == one


def test_it_is_written_as_by_mysql() -> None:
    text = f"{UUIDS[0]}:1-5:9:blue:2-3,\n{UUIDS[1].upper()}:7"
    assert str(GtidSet.parse(text)) == f"{UUIDS[0]}:1-5:9:blue:2-3,{UUIDS[1]}:7"


def test_intervals_that_touch_are_one() -> None:
    assert str(GtidSet.parse(f"{UUIDS[0]}:1-3:4-6,{UUIDS[0]}:7")) == f"{UUIDS[0]}:1-7"


@pytest.mark.parametrize(
    "text", ["nonsense:1", f"{UUIDS[0]}:0", f"{UUIDS[0]}:5-3", f"{UUIDS[0]}:1-", f"{UUIDS[0]}:BAD!"]
)
def test_what_is_no_set_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="GTID set"):
        GtidSet.parse(text)

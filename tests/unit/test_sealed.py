"""What is sealed opens under its own name, with a key of the ring, and not after any change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.backup.sealed import OVERHEAD, DamagedError, Ring
from flotilla.errors import BadOption

OLD, NEW = "the-first-key-of-this-fleet", "the-second-key-of-this-fleet"
RING = Ring.parse(OLD)


@given(st.binary(max_size=5000))
def test_it_opens(data: bytes) -> None:
    assert RING.open("a", RING.seal("a", data), most=5000) == data


@given(st.binary(max_size=200), st.data())
def test_a_change_of_one_bit_is_found(data: bytes, draw: st.DataObject) -> None:
    sealed = bytearray(RING.seal("a", data))
    at = draw.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= 1 << draw.draw(st.integers(0, 7))
    with pytest.raises(DamagedError, match=r"^a: "):
        RING.open("a", bytes(sealed), most=200)


@given(st.binary(max_size=200), st.data())
def test_an_object_cut_off_is_found(data: bytes, draw: st.DataObject) -> None:
    sealed = RING.seal("a", data)
    with pytest.raises(DamagedError):
        RING.open("a", sealed[: draw.draw(st.integers(0, len(sealed) - 1))], most=200)


def test_an_object_under_another_name_does_not_open() -> None:
    with pytest.raises(DamagedError, match="b: its content is not what was sealed under this name"):
        RING.open("b", RING.seal("a", b"x"), most=1)


def test_a_rotated_ring_opens_both_and_seals_with_the_newest() -> None:
    both = Ring.parse(f"{NEW}\n {OLD}\n")
    assert both.open("a", RING.seal("a", b"x"), most=1) == b"x"
    assert Ring.parse(NEW).open("a", both.seal("a", b"y"), most=1) == b"y"
    assert both.newest != RING.newest
    assert both.is_mac(RING.mac(b"m"), b"m")
    assert not RING.is_mac(both.mac(b"m"), b"m")


def test_a_foreign_key_is_named_by_its_id() -> None:
    with pytest.raises(DamagedError) as caught:
        RING.open("a", Ring.parse(NEW).seal("a", b"x"), most=1)
    assert Ring.parse(NEW).newest in caught.value.what
    assert RING.newest in caught.value.what
    assert OLD not in str(caught.value)


def test_no_more_is_unpacked_than_expected() -> None:
    with pytest.raises(DamagedError, match="where 10 were expected"):
        RING.open("a", RING.seal("a", bytes(1000)), most=10)


def test_two_seals_of_the_same_differ() -> None:
    assert RING.seal("a", b"x") != RING.seal("a", b"x")
    assert len(RING.seal("a", b"")) >= OVERHEAD


@pytest.mark.parametrize("text", ["", "  ", "short", f"{OLD} short"])
def test_a_ring_that_protects_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadOption) as caught:
        Ring.parse(text)
    assert OLD not in str(caught.value)


def test_no_key_is_shown() -> None:
    assert OLD not in repr(RING)

"""However a log comes in, whole or byte by byte, the same is read of it and the same refused."""

from __future__ import annotations

import zlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.binlog import (
    ANONYMOUS_GTID,
    CHECKSUM,
    FORMAT,
    GTID,
    HEADER,
    MAGIC,
    PREVIOUS_GTIDS,
    ROTATE,
    BinlogError,
    Reader,
    Transaction,
)

QUERY, XID, TABLE_MAP, WRITE_ROWS = 2, 16, 19, 30
UUIDS = [UUID(int=number) for number in (1, 2)]

Read = tuple[list[Transaction], int, int, str, bool]


def event(kind: int, body: bytes, flags: int = 0) -> bytes:
    length = (HEADER + len(body) + CHECKSUM).to_bytes(4, "little")
    head = bytes(4) + bytes([kind]) + bytes(4) + length + bytes(4)
    crc = zlib.crc32(head + bytes(2) + body).to_bytes(CHECKSUM, "little")
    return head + flags.to_bytes(2, "little") + body + crc


def gtid(uuid: UUID, number: int, at: int, inside: int, *, has_original: bool) -> bytes:
    """The event before ``inside`` bytes of one transaction, whose length it tells."""
    moments = (at | has_original << 55).to_bytes(7, "little")
    moments += (at - 1).to_bytes(7, "little") if has_original else b""
    start = b"\1" + uuid.bytes + number.to_bytes(8, "little") + bytes(17) + moments
    whole = HEADER + len(start) + 9 + CHECKSUM + inside
    return event(GTID, start + b"\xfe" + whole.to_bytes(8, "little"))


@st.composite
def transactions(draw: st.DrawFn) -> bytes:
    kinds = draw(st.lists(st.sampled_from([QUERY, TABLE_MAP, WRITE_ROWS]), max_size=4))
    inside = b"".join(event(one, draw(st.binary(max_size=40))) for one in [*kinds, XID])
    uuid, number = draw(st.sampled_from(UUIDS)), draw(st.integers(1, 1 << 40))
    at = draw(st.integers(1, 1 << 54))
    return gtid(uuid, number, at, len(inside), has_original=draw(st.booleans())) + inside


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    first = event(FORMAT, draw(st.binary(min_size=1, max_size=30)), draw(st.sampled_from([0, 1])))
    known = bytes(8) + draw(st.sampled_from([b"", bytes(8)]))
    between = st.one_of(transactions(), st.builds(event, st.just(QUERY), st.binary(max_size=9)))
    rest = draw(st.lists(between, max_size=6))
    last = [event(ROTATE, b"binlog.000002")] * draw(st.integers(0, 1))
    return b"".join([MAGIC, first, event(PREVIOUS_GTIDS, known), *rest, *last])


def read(pieces: list[bytes]) -> Read | str:
    reader, found = Reader(), list[Transaction]()
    try:
        for one in pieces:
            found += reader.feed(one)
    except BinlogError as error:
        return str(error)
    return found, reader.at, reader.whole, str(reader.previous), reader.is_over


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at, number = [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        pieces.append(data[at : at + size])
        at, number = at + size, number + 1
    return pieces


@given(logs(), st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_the_cuts_of_the_input_change_nothing(data: bytes, sizes: list[int]) -> None:
    whole = read([data])
    assert not isinstance(whole, str)
    assert whole[1:3] == (len(data), len(data))
    assert read(cut(data, sizes)) == read(cut(data, [1])) == whole


@given(logs(), st.data())
def test_what_is_damaged_is_refused_however_it_comes(data: bytes, drawn: st.DataObject) -> None:
    at = drawn.draw(st.integers(len(MAGIC), len(data) - 1))
    damaged = bytearray(data)
    damaged[at] ^= drawn.draw(st.integers(1, 255))
    sizes = drawn.draw(st.lists(st.integers(1, 300), min_size=1, max_size=8))
    found = read([bytes(damaged)])
    assert read(cut(bytes(damaged), sizes)) == read(cut(bytes(damaged), [1])) == found
    # A length that is too long may reach past the end; the flags of the first event tell nothing.
    assert isinstance(found, str) or found[2] < len(data) or at == len(MAGIC) + 17


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (event(ANONYMOUS_GTID, bytes(42)), "without a GTID"),
        (event(XID, bytes(8))[:-1] + b"\0", "checksum"),
        (event(QUERY, b"")[:9] + bytes(14), "an event of 0 bytes"),
        (2 * gtid(UUIDS[0], 1, 1, 50, has_original=False), "inside another"),
        (gtid(UUIDS[0], 1, 1, 5, has_original=False) + event(XID, b""), "ends in an event"),
    ],
)
def test_what_no_server_writes_is_refused(wrong: bytes, why: str) -> None:
    data = MAGIC + event(FORMAT, b"") + wrong
    assert why in str(read([data]))
    assert read(cut(data, [1])) == read([data])

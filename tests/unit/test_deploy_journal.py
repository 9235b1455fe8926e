"""A journal is read as far as it can be, whatever a killed run or a bad disk left in it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flotilla.deploy.journal import Journal, read

WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "left", [b'{"at": "x", "ev', b"\xff\xfe\x00", b"[1]\n", b'{"other": 1}\n', b"null\n"]
)
def test_a_line_that_cannot_be_read_ends_the_journal_and_keeps_what_was_before(
    tmp_path: Path, left: bytes
) -> None:
    journal = Journal(tmp_path / "one.jsonl", lambda: WHEN)
    journal.write("begin", version="7")
    with journal.path.open("ab") as file:
        file.write(left)
    assert [line["event"] for line in read(journal.path)] == ["begin"]

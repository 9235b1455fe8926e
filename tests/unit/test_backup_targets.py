"""Where to restore to, as it is typed."""

from __future__ import annotations

import pytest

from flotilla.backup.operate import moment, target
from flotilla.errors import BadOption

UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-20 14:03:07", 1795183387),
        ("2026-11-20 14:03", 1795183380),
        ("2026-11-20T15:03:07+01:00", 1795183387),
        ("2026-11-20 14:03:07.25", 1795183387.25),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text: str, seconds: float) -> None:
    assert moment(text) == round(seconds * 1e6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no moment is given"),
        ("yesterday", "'yesterday' is no moment"),
        ("0001-01-01 00:00:00+23:00", "is no moment"),
        ("9999-12-31T23:59:59-23:00", "is no moment"),
        ("1969-12-31 23:59:59", "is no moment"),
    ],
)
def test_what_is_no_moment_is_refused_before_anything_is_asked(text: str, says: str) -> None:
    with pytest.raises(BadOption, match=says):
        moment(text)


def test_a_target_is_a_moment_or_a_set_and_neither_both_nor_neither() -> None:
    assert moment("latest") is None
    assert target(None, "") == ["--to", "latest"]
    assert target(5, "") == ["--to", "5"]
    assert target(None, f"{UUID}:1-5") == ["--gtid", f"{UUID}:1-5"]
    with pytest.raises(BadOption, match="both"):
        target(5, f"{UUID}:1")
    with pytest.raises(BadOption, match="--gtid 'garbage'"):
        target(None, "garbage")

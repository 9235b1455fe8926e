"""One host archives; the primary if it can; and a recovery point that is too old is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.archive_duty import (
    ALARM_SECONDS,
    MEASURE_SECONDS,
    STEP_IN_SECONDS,
    Lease,
    Progress,
    act,
    is_due,
    objection,
)
from flotilla.rules.gtid import GtidSet

NOW = 1000.0
UUID = "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize(
    ("lease", "is_primary", "wanted"),
    [
        (None, True, "take"),
        (None, False, "wait"),
        (Lease("me", NOW + 1), True, "archive"),
        (Lease("me", NOW + 1), False, "archive"),
        (Lease("other", NOW + 1), True, "take"),
        (Lease("other", NOW + 1), False, "wait"),
        (Lease("other", NOW - STEP_IN_SECONDS + 1), False, "wait"),
        (Lease("other", NOW - STEP_IN_SECONDS - 1), False, "take"),
        (Lease("", NOW - STEP_IN_SECONDS - 1), False, "take"),
        (Lease("me", NOW - 1), False, "wait"),
    ],
)
def test_who_archives(lease: Lease | None, is_primary: bool, wanted: str) -> None:
    assert act(lease, me="me", is_primary=is_primary, now=NOW) == wanted


def test_what_is_wrong_with_the_recovery_point() -> None:
    nothing = GtidSet()
    assert objection(Progress("a", NOW - 2), nothing, NOW) == ""
    assert "61 s behind (limit 60 s)" in objection(
        Progress("a", NOW - ALARM_SECONDS - 1), nothing, NOW
    )
    assert objection(None, nothing, NOW) == "the binary logs were never archived"
    gap = Progress("a", NOW, missing=f"{UUID}:1-5")
    assert f"{UUID}:3-5: only a full backup" in objection(gap, GtidSet.parse(f"{UUID}:1-2"), NOW)
    assert objection(gap, GtidSet.parse(f"{UUID}:1-9"), NOW) == ""


@given(
    gaps=st.lists(st.floats(0.5, 3.0), min_size=100, max_size=100),
    stuck_at=st.floats(0.0, 70.0),
)
def test_an_archive_that_falls_behind_is_told_of_a_look_after_the_limit(
    gaps: list[float], stuck_at: float
) -> None:
    now, told_at, told, told_times = 0.0, -100.0, 0.0, []
    for gap in gaps:
        now += gap
        behind = max(0.0, now - stuck_at)
        if is_due(behind, told, now - told_at):
            told_at, told = now, behind
            told_times.append((now, behind))
    if now > stuck_at + ALARM_SECONDS + 3.0:
        first = min(at for at, behind in told_times if behind > ALARM_SECONDS)
        assert first <= stuck_at + ALARM_SECONDS + 3.0
    assert len(told_times) <= now / MEASURE_SECONDS + 2, "once a minute, and once more"

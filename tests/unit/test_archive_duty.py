"""One host archives; the primary if it can; and a recovery point that is too old is told."""

from __future__ import annotations

import pytest

from flotilla.rules.archive_duty import (
    ALARM_SECONDS,
    STEP_IN_SECONDS,
    Lease,
    Progress,
    act,
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

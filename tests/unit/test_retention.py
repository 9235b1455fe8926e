"""Nothing that is still needed is dropped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.archive import Known, Part, Place, Stream
from flotilla.rules.gtid import GtidSet
from flotilla.rules.retention import Policy, droppable, verdicts

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
UUID = "00000000-0000-0000-0000-000000000001"
policies = st.builds(
    Policy, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)
)
ages = st.sets(st.integers(0, 24 * 400), min_size=1, max_size=40)


def taken(hours: set[int]) -> dict[str, datetime]:
    return {f"b{one:05}": NOW - timedelta(hours=one) for one in hours}


@given(ages, policies)
def test_the_newest_always_stays(hours: set[int], policy: Policy) -> None:
    found = verdicts(taken(hours), policy)
    assert found[0].why == "the newest"
    assert found[0].backup == f"b{min(hours):05}"
    assert len(found) == len(hours)


@given(ages, policies)
def test_what_is_dropped_is_never_wanted_again(hours: set[int], policy: Policy) -> None:
    """A second run keeps all that the first one kept, while nothing new came."""
    first = {one.backup for one in verdicts(taken(hours), policy) if one.why}
    left = {name: at for name, at in taken(hours).items() if name in first}
    again = {one.backup for one in verdicts(left, policy) if one.why}
    assert again == first


def test_days_weeks_and_months_keep_one_each() -> None:
    hours = set(range(6, 24 * 200, 12))
    kept = [one for one in verdicts(taken(hours), Policy(2, 5, 4, 3)) if one.why]
    reasons = [one.why for one in kept]
    assert reasons.count("the newest of its day") + 2 >= 5
    assert len(kept) <= 2 + 5 + 4 + 3
    assert verdicts({}, Policy()) == []


def stream(files: dict[str, str], term: int = 1) -> Known:
    where = Stream(term, UUID)
    parts = tuple(
        Part(Place(where, f"binlog.{file}", 0, 10), GtidSet.parse(f"{UUID}:{gtids}"), 1, 2, 0)
        for file, gtids in files.items()
    )
    return Known(where, parts)


def test_logs_go_when_every_kept_backup_has_all_of_them() -> None:
    known = stream({"000001": "1-10", "000002": "11-20", "000003": "21-30", "000004": "31-40"})
    oldest, newest = GtidSet.parse(f"{UUID}:1-20"), GtidSet.parse(f"{UUID}:1-35")
    dropped = droppable([known], [newest, oldest])
    assert [part.place.file for part in dropped] == ["binlog.000001", "binlog.000002"]
    assert droppable([known], []) == []


def test_the_last_log_of_a_stream_stays() -> None:
    known = stream({"000001": "1-10", "000002": "11-20"})
    dropped = droppable([known], [GtidSet.parse(f"{UUID}:1-99")])
    assert [part.place.file for part in dropped] == ["binlog.000001"]

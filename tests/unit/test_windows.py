"""When a deploy may begin: weekly and dated windows, in their own zone, summer time included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.windows import DAYS, Window, closed

BERLIN = "Europe/Berlin"
EVENING = Window("16:00", "24:00", "nobody is here", days=("fri",))
NIGHT = Window("22:00", "06:00", "the batch jobs run", days=("mon", "sun"))
YEAR_END = Window("2026-12-23 12:00", "2027-01-04 08:00", "the end of the year")


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(BERLIN))


@pytest.mark.parametrize(
    ("window", "now", "until"),
    [
        (EVENING, "2026-11-20 15:59", None),
        (EVENING, "2026-11-20 16:00", "2026-11-21 00:00"),
        (EVENING, "2026-11-20 23:59", "2026-11-21 00:00"),
        (EVENING, "2026-11-21 00:00", None),
        (EVENING, "2026-11-19 17:00", None),
        (NIGHT, "2026-11-23 22:00", "2026-11-24 06:00"),
        (NIGHT, "2026-11-24 05:59", "2026-11-24 06:00"),
        (NIGHT, "2026-11-24 06:00", None),
        (NIGHT, "2026-11-23 03:00", "2026-11-23 06:00"),
        (NIGHT, "2026-11-25 03:00", None),
        (YEAR_END, "2026-12-23 11:59", None),
        (YEAR_END, "2026-12-31 23:59", "2027-01-04 08:00"),
        (YEAR_END, "2027-01-04 08:00", None),
    ],
)
def test_a_window_begins_and_ends_by_the_clock_on_the_wall(window, now, until):
    found = closed([window], BERLIN, berlin(now))
    assert (found.until.strftime("%Y-%m-%d %H:%M") if found else None) == until
    assert found is None or found.reason == window.reason


def test_the_clock_is_that_of_the_windows_zone_and_not_of_the_machine():
    now = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)
    assert closed([EVENING], BERLIN, now)
    assert closed([EVENING], "UTC", now) is None


def test_windows_that_touch_are_one():
    weekend = [
        Window("16:00", "24:00", "friday", days=("fri",)),
        Window("00:00", "24:00", "the weekend", days=("sat", "sun")),
        Window("00:00", "08:00", "monday", days=("mon",)),
    ]
    found = closed(weekend, BERLIN, berlin("2026-11-20 18:00"))
    assert found
    assert found.until == berlin("2026-11-23 08:00")
    assert found.reason == "friday"


def test_a_week_that_is_closed_for_ever_has_an_end_all_the_same():
    for_ever = [Window("00:00", "24:00", "for ever", days=DAYS)]
    assert closed(for_ever, "UTC", datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("utc", "shut"),
    [
        # On 25 October 2026 the hour from 2:00 happens twice in Berlin: 0:00 to 2:00 UTC.
        ("2026-10-24 23:59", False),
        ("2026-10-25 00:00", True),
        ("2026-10-25 01:29", True),
        ("2026-10-25 01:30", False),
    ],
)
def test_an_hour_that_happens_twice_is_closed_both_times(utc, shut):
    window = Window("02:00", "02:30", "backup", days=("sun",))
    now = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    assert bool(closed([window], BERLIN, now)) is shut


@pytest.mark.parametrize("minute", [0, 20, 29])
def test_an_hour_that_never_happens_closes_something_all_the_same(minute):
    # On 29 March 2026 Berlin goes from 2:00 to 3:00, at 1:00 UTC.
    window = Window("02:15", "02:30", "backup", days=("sun",))
    now = datetime(2026, 3, 29, 0, 15, tzinfo=UTC) + timedelta(minutes=minute)
    assert closed([window], BERLIN, now)


moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1))  # noqa: DTZ001  of no zone yet
clocks = st.times().map(lambda t: t.strftime("%H:%M"))
weekly = st.builds(
    Window,
    clocks,
    clocks | st.just("24:00"),
    st.just("w"),
    st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(tuple),
)
zones = st.sampled_from([BERLIN, "UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])


@given(st.lists(weekly, max_size=3), zones, moments)
def test_what_is_promised_as_the_end_is_open_and_lies_ahead(windows, zone, now):
    found = closed(windows, zone, now.replace(tzinfo=UTC))
    if found is None:
        return
    assert found.until > now.replace(tzinfo=UTC)
    if found.until < now.replace(tzinfo=UTC) + timedelta(days=400):
        assert closed(windows, zone, found.until) is None


@given(weekly, zones, moments)
def test_a_week_later_the_answer_is_the_same_at_the_same_time_of_day(window, zone, now):
    here = now.replace(tzinfo=ZoneInfo(zone))
    later = (now + timedelta(days=7)).replace(tzinfo=ZoneInfo(zone))
    changes = {(here + timedelta(days=d)).utcoffset() for d in range(-2, 10)}
    if len(changes) == 1:
        assert bool(closed([window], zone, here)) == bool(closed([window], zone, later))

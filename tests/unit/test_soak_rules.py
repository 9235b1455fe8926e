"""When a host that came back is no good: never by chance, never for what hurts everybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.soak import (
    CHANCE,
    WINDOW,
    Sample,
    Seen,
    chance,
    increase,
    seen,
    why_slow,
    why_unfit,
)

counts = st.integers(0, 5000)


def answers(requests: int, errors: int = 0, **more: float) -> Seen:
    return Seen(requests=requests, errors=errors, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        (answers(6, 6), answers(40)),  # a slow night: six requests are enough
        (answers(200, 9), answers(1000)),
        (answers(200, 40), answers(1000, 20)),  # the others fail a little too
        (answers(30, 30), answers(0)),  # a fleet of one
    ],
)
def test_a_host_that_fails_more_than_the_others_is_unfit(mine: Seen, others: Seen) -> None:
    assert "failed" in (why_unfit("app-1", mine, others) or "")


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        (answers(0), answers(0)),
        (answers(2, 2), answers(100)),  # two requests are no proof
        (answers(100, 2), answers(500)),  # nor are two errors
        (answers(4, 4), answers(8)),
        (answers(100, 50), answers(500, 250)),  # the database is away for everybody
        (answers(100, 3), answers(400, 8)),
        (answers(100000, 300), answers(500000, 50)),  # certain, and too little to matter
        (answers(10, 5), answers(0)),  # the others have not been asked yet
        (answers(1000, 30), answers(0)),
    ],
)
def test_little_traffic_and_everybodys_trouble_are_not_held_against_it(
    mine: Seen, others: Seen
) -> None:
    assert why_unfit("app-1", mine, others) is None


def test_checks_that_fail_count_without_any_traffic() -> None:
    assert why_unfit("app-1", Seen(downs=1), Seen()) == (
        "app-1 went down by its health checks while it was watched"
    )
    assert why_unfit("app-1", Seen(failed_checks=2), Seen()) is not None
    assert why_unfit("app-1", Seen(failed_checks=1), Seen()) is None
    assert why_unfit("app-1", Seen(failed_checks=3), Seen(failed_checks=3)) is None
    assert why_unfit("app-1", Seen(downs=1), Seen(downs=1)) is None


@pytest.mark.parametrize(
    ("mine", "others", "unfit"),
    [(900, 50, True), (290, 50, False), (310, 50, True), (1000, 400, False), (1300, 400, True)],
)
def test_slower_is_three_times_and_a_quarter_of_a_second(
    mine: float, others: float, unfit: bool
) -> None:
    own, their = Seen(100, timed=100, time_ms=mine), Seen(500, timed=500, time_ms=others)
    assert (why_slow("app-1", [own, own], [their, their]) is not None) == unfit


def test_times_of_few_answers_are_not_compared() -> None:
    slow = Seen(29, timed=29, time_ms=9000)
    quick = Seen(500, timed=500, time_ms=5)
    assert why_slow("app-1", [slow, slow], [quick, quick]) is None
    assert why_slow("app-1", [], []) is None


def test_a_host_that_had_the_long_requests_for_once_is_not_slow() -> None:
    usual = Seen(60, timed=60, time_ms=50)
    unlucky = Seen(60, timed=60, time_ms=560)
    assert why_slow("app-4", [unlucky, usual], [usual, usual]) is None
    assert why_slow("app-4", [unlucky, unlucky], [usual, usual]) is not None


@given(errors=counts, good=counts, others=counts)
def test_a_host_among_others_without_fault_is_never_blamed_without_errors(
    errors: int, good: int, others: int
) -> None:
    assert why_unfit("app-1", answers(good), answers(others + errors, errors)) is None


@given(errors=st.integers(0, 200), good=st.integers(0, 500), times=st.integers(1, 5))
def test_a_host_that_fails_like_the_others_is_never_blamed(
    errors: int, good: int, times: int
) -> None:
    mine = answers(errors + good, errors)
    others = answers(times * (errors + good), times * errors)
    if others.requests:
        assert why_unfit("app-1", mine, others) is None


@given(
    requests=st.integers(5, 400),
    others=st.integers(20, 2000),
    errors=st.integers(3, 400),
)
def test_more_errors_never_make_a_host_fitter(requests: int, others: int, errors: int) -> None:
    errors = min(errors, requests)
    if why_unfit("app-1", answers(requests, errors), answers(others)) and errors < requests:
        assert why_unfit("app-1", answers(requests, errors + 1), answers(others))


@given(a=st.integers(0, 60), b=st.integers(0, 60), c=st.integers(0, 60), d=st.integers(0, 60))
def test_chance_is_a_probability_and_the_whole_tail_is_certain(
    a: int, b: int, c: int, d: int
) -> None:
    assert 0 <= chance(a, a + b, c, c + d) <= 1
    assert chance(0, a + b, c, c + d) == pytest.approx(1)


def test_chance_is_what_fishers_test_gives() -> None:
    # Fisher's tea: 3 of 4 against 1 of 4 is 17 of 70.
    assert chance(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert chance(6, 6, 0, 40) < CHANCE


def test_a_load_balancer_that_was_started_again_counts_from_zero() -> None:
    before, after = Sample(5000, 10, 40, 3, 1), Sample(20, 5, 60)
    assert increase(before, after) == Seen(20, 5, timed=20, time_ms=59)


@given(
    old=st.integers(0, 3000),
    new=st.integers(30, 400),
    was=st.floats(1, 500),
    now=st.floats(1, 5000),
)
def test_the_mean_is_found_again_in_haproxys_moving_average(
    old: int, new: int, was: float, now: float
) -> None:
    average = was
    for number in range(old + 1, old + new + 1):
        average += (now - average) / min(number, WINDOW)
    found = increase(
        Sample(old, time_ms=was if old else 0), Sample(old + new, time_ms=average)
    ).time_ms
    if new / min(old + new, WINDOW) > 0.2:
        assert found <= now
        assert found == pytest.approx(now, abs=6)


def test_all_load_balancers_count_together() -> None:
    before = {"lb-1": {"a": Sample(10, 0, 5)}, "lb-2": {"a": Sample(0)}}
    after = {"lb-1": {"a": Sample(50, 1, 5)}, "lb-2": {"a": Sample(60, 2, 5), "b": Sample(9)}}
    together = seen(before, after, ["a"])
    assert (together.requests, together.errors) == (100, 3)

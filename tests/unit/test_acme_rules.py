"""When a certificate is ordered, which one is served, and what HAProxy's map is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import acme as rules
from flotilla.rules.acme import (
    DAY,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    REQUEST_SECONDS,
    Attempts,
    Issued,
    Request,
    Tokens,
)

NOW = 1_800_000_000.0
NAME = "shop.example"
NEVER = Attempts()
NOBODY = Request()


def issued(left_days: float, life_days: float = 90.0, names: tuple[str, ...] = (NAME,)) -> Issued:
    ends = NOW + left_days * DAY
    return Issued("1A", "CN=an authority", names, ends - life_days * DAY, ends)


FAILED = st.builds(
    Attempts,
    at=st.floats(NOW - 10 * DAY, NOW),
    failures=st.integers(1, 200),
    why=st.just("no"),
    limited=st.booleans(),
)
CERTIFICATES = st.one_of(
    st.none(),
    st.builds(
        issued,
        st.floats(-100, 400),
        st.floats(1, 400),
        st.sampled_from([(NAME,), ("other.example",), ()]),
    ),
)


@pytest.mark.parametrize(
    ("left", "life", "due"),
    [(31, 90, False), (29.9, 90, True), (24, 47, False), (23.4, 47, True), (4, 6, False)],
)
def test_it_is_renewed_a_month_or_half_of_a_short_life_before_the_end(left, life, due) -> None:
    assert rules.decide(issued(left, life), NAME, NEVER, NOBODY, NOW).is_due(NOW) is due


@pytest.mark.parametrize(
    ("current", "why"),
    [
        (None, "there is no certificate yet"),
        (issued(60, names=("other.example",)), "for other.example and not for shop.example"),
        (issued(60, names=()), "for no name"),
        (issued(-1), "is over"),
    ],
)
def test_without_one_that_is_fit_it_is_ordered_at_once(current: Issued | None, why: str) -> None:
    found = rules.decide(current, NAME, NEVER, NOBODY, NOW)
    assert found.is_due(NOW)
    assert why in found.why


@given(CERTIFICATES, FAILED)
def test_after_a_failure_nobody_orders_before_the_pause_is_over(current, attempts) -> None:
    found = rules.decide(current, NAME, attempts, NOBODY, NOW)
    least = attempts.at + (LONGEST_PAUSE_SECONDS if attempts.limited else FIRST_PAUSE_SECONDS)
    assert found.at >= least
    if current is None:
        assert found.at <= max(NOW, attempts.at + LONGEST_PAUSE_SECONDS), "it is tried for ever"


@given(CERTIFICATES)
def test_attempts_that_all_fail_or_are_killed_grow_rarer(current) -> None:
    attempts, now, begun = NEVER, NOW, []
    while now < NOW + 10 * DAY:
        found = rules.decide(current, NAME, attempts, NOBODY, now)
        if not found.is_due(now):
            now = found.at
            continue
        begun.append(now)
        attempts = rules.begun(attempts, NOBODY, now)
    for number, (first, second) in enumerate(pairwise(begun)):
        assert second - first >= min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
    # Let's Encrypt: five failed looks at a name in an hour, five equal certificates in a week.
    assert len([at for at in begun if at < NOW + 3 * 3600]) <= 3


@given(CERTIFICATES, FAILED, st.floats(-REQUEST_SECONDS, REQUEST_SECONDS))
def test_a_request_is_taken_up_at_once_and_once(current, attempts, ago: float) -> None:
    asked = Request("r1", "ann", NOW - ago)
    assert rules.decide(current, NAME, attempts, asked, NOW).is_due(NOW)
    begun = rules.begun(attempts, asked, NOW)
    assert begun.request == "r1"
    assert begun.failures == attempts.failures + 1
    assert not rules.decide(current, NAME, begun, asked, NOW + 1).is_due(NOW + 1)


def test_a_request_of_long_ago_is_none() -> None:
    asked = Request("r1", "ann", NOW - REQUEST_SECONDS - 1)
    assert not rules.is_wanted(asked, NEVER, NOW)


def test_a_success_ends_the_pause() -> None:
    done = replace(Attempts(NOW - 60, 3, "no"), failures=0, why="")
    assert rules.decide(None, NAME, done, NOBODY, NOW).is_due(NOW)
    assert not rules.decide(issued(60), NAME, done, NOBODY, NOW).is_due(NOW)


def test_one_that_begins_tomorrow_is_not_served() -> None:
    assert rules.unfit(issued(92, 90), NAME, NOW) == "not valid yet"
    assert rules.unfit(issued(90, 90), NAME, NOW - 60) == "", "clocks differ by a minute"


def test_a_token_is_answered_until_its_end() -> None:
    tokens = Tokens({"/a": "b"}, NOW)
    assert tokens.now(NOW - 1) == {"/a": "b"}
    assert tokens.now(NOW) == {}


WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
MAPS = st.dictionaries(WORDS, WORDS, max_size=5)


@given(MAPS, MAPS)
def test_the_map_is_told_only_what_differs(now: dict[str, str], wanted: dict[str, str]) -> None:
    held = dict(now)
    for command in rules.map_commands(now, wanted):
        verb, _, _, key, *value = command.split()
        assert (key in held) is (verb != "add")
        if verb == "del":
            held.pop(key)
        else:
            held[key] = value[0]
    assert held == wanted
    assert rules.map_commands(wanted, wanted) == []


@given(MAPS)
def test_what_the_process_says_is_read(entries: dict[str, str]) -> None:
    said = "".join(f"0x5 {line}\n" for line in rules.map_text(entries).splitlines())
    assert rules.running(f"{said}\n") == entries


def test_a_process_without_the_map_does_not_say_that_it_is_empty() -> None:
    with pytest.raises(ValueError, match="Unknown map"):
        rules.running("Unknown map identifier. Please use #<id> or <file>.\n")

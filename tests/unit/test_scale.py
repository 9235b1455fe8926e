"""How many hosts come, and which go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla import config, scale
from flotilla.errors import BadOption

NUMBERS = st.lists(st.integers(1, 99), unique=True, min_size=1)


@given(NUMBERS, st.integers(1, 120))
def test_after_it_there_are_as_many_hosts_as_asked_for(numbers: list[int], count: int) -> None:
    present = [f"app-{number}" for number in numbers]
    plan = scale.difference(present, count)
    assert len(present) + plan.add - len(plan.remove) == count
    assert not (plan.add and plan.remove)
    assert set(plan.remove) <= set(present)


@given(NUMBERS, st.integers(1, 99))
def test_hosts_with_the_highest_numbers_go(numbers: list[int], count: int) -> None:
    plan = scale.difference([f"app-{number}" for number in numbers], count)
    gone = {int(name.removeprefix("app-")) for name in plan.remove}
    stay = set(numbers) - gone
    assert all(one > other for one in gone for other in stay)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1001", "", "2.5"])
def test_what_is_no_number_of_hosts_is_a_bad_option(text: str) -> None:
    with pytest.raises(BadOption):
        scale.number(text)
    assert scale.number("6") == 6


@pytest.mark.parametrize("role", ["mysql", "redis", "lb", "bastion", "web"])
def test_only_hosts_that_come_and_go_can_be_scaled(role: str) -> None:
    with pytest.raises(BadOption, match="app"):
        scale.plan(config.load("lab"), role, 3)


def test_a_plan_says_which_hosts_go() -> None:
    assert "app-10, app-9" in scale.told(scale.difference(["app-2", "app-10", "app-9"], 1))
    assert "nothing to do" in scale.told(scale.difference(["app-1"], 1))

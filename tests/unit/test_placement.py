"""Where hosts go, which are missing or too many, and what Auto Scaling's hosts are called."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.placement import difference, names, place, why_not_shrink

ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")

numbers = st.sets(st.integers(1, 12))


def hosts(*numbers: int) -> set[str]:
    return {f"mysql-{number}" for number in numbers}


@given(size=st.integers(1, 60))
def test_no_zone_has_two_hosts_more_than_another(size):
    counted = Counter(place("app", number, ZONES).zone for number in range(1, size + 1))
    assert max(counted.values()) - min(counted.get(zone, 0) for zone in ZONES) <= 1


@given(number=st.integers(1, 100))
def test_a_host_always_belongs_in_the_same_zone(number):
    alone = place("redis", number, ZONES)
    among_others = difference("redis", number, ZONES, []).launch[-1]
    assert alone == among_others


def test_only_the_bastion_and_the_load_balancers_are_public():
    roles = ("bastion", "lb", "app", "mysql", "redis")
    assert [place(role, 1, ZONES).public for role in roles] == [True, True, False, False, False]


@given(existing=numbers, size=st.integers(1, 12))
def test_after_the_difference_is_made_there_is_none(existing, size):
    plan = difference("mysql", size, ZONES, hosts(*existing))
    after = (hosts(*existing) | {host.name for host in plan.launch}) - set(plan.surplus)
    assert after == hosts(*range(1, size + 1))


def test_a_lost_host_comes_back_under_its_own_name():
    plan = difference("mysql", 3, ZONES, hosts(1, 3))
    assert [(host.name, host.zone) for host in plan.launch] == [("mysql-2", "eu-central-1b")]


def test_the_hosts_with_the_highest_numbers_go_first():
    assert difference("mysql", 3, ZONES, hosts(1, 2, 3, 9, 10, 4)).surplus == (
        "mysql-10",
        "mysql-9",
        "mysql-4",
    )


@given(surplus=st.lists(st.sampled_from(sorted(hosts(4, 5, 6))), min_size=1), allowed=st.booleans())
def test_the_primary_is_never_taken_away(surplus, allowed):
    assert why_not_shrink("mysql", surplus, allowed=allowed, primary=surplus[0])


@pytest.mark.parametrize("role", ["mysql", "redis"])
def test_a_tier_with_data_shrinks_only_when_told(role):
    surplus = [f"{role}-4"]
    assert why_not_shrink(role, surplus, allowed=False, primary=None)
    assert why_not_shrink(role, surplus, allowed=True, primary=f"{role}-1") is None


def test_a_tier_without_data_shrinks_by_fleet_yml_alone():
    assert why_not_shrink("lb", ["lb-3"], allowed=False, primary=None) is None


given_names = st.sampled_from(["", "app-1", "app-2", "app-3", "app-9", "app-0", "web-1", "app-x"])


@given(st.lists(given_names, max_size=8))
def test_every_host_ends_with_a_name_of_its_own(found):
    now = {f"i-{place}": name for place, name in enumerate(found)}
    after = now | names("app", now, list(now))
    assert len(set(after.values())) == len(after)
    assert all(name.startswith("app-") and int(name[4:]) > 0 for name in after.values())


@given(st.lists(given_names, max_size=8))
def test_the_oldest_holder_of_a_good_name_keeps_it(found):
    now = {f"i-{place}": name for place, name in enumerate(found)}
    renamed = names("app", now, list(now))
    for good in ("app-1", "app-2", "app-3", "app-9"):
        holders = [host for host, name in now.items() if name == good]
        assert not holders or holders[0] not in renamed


def test_free_numbers_are_given_from_the_lowest():
    now = {"i-a": "app-2", "i-b": "", "i-c": "", "i-d": "app-4"}
    assert names("app", now, list(now)) == {"i-b": "app-1", "i-c": "app-3"}

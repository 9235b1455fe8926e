"""Which server settings keep a member out."""

from __future__ import annotations

import pytest

from flotilla.rules.mysql_settings import LONGEST_SECONDS, NAMES, REQUIRED, faults

RIGHT = {name: value for name, (value, _) in REQUIRED.items()} | {
    "rpl_semi_sync_source_timeout": "1000000000",
    "rpl_stop_replica_timeout": "30",
    "replica_net_timeout": "4",
}


def test_the_settings_of_the_role_have_no_fault():
    assert list(faults(RIGHT, {})) == []


@pytest.mark.parametrize("name", REQUIRED)
def test_each_required_setting_is_named_when_it_is_wrong(name):
    wrong = "OFF" if RIGHT[name] != "OFF" else "ON"
    (fault,) = faults(RIGHT | {name: wrong}, {})
    assert fault.startswith(f"{name} is {wrong}, must be {RIGHT[name]}")


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_the_server_does_not_know_is_a_fault(name):
    assert list(faults({k: v for k, v in RIGHT.items() if k != name}, {}))


@pytest.mark.parametrize(("name", "limit"), LONGEST_SECONDS.items())
def test_a_wait_that_could_outlast_everybody_is_a_fault(name, limit):
    assert list(faults(RIGHT | {name: str(limit + 1)}, {}))


def test_a_timeout_that_ends_in_asynchronous_commits_is_a_fault():
    (fault,) = faults(RIGHT | {"rpl_semi_sync_source_timeout": "10000"}, {})
    assert "10000 ms" in fault


def test_a_persisted_role_is_a_fault():
    (fault,) = faults(RIGHT, {"super_read_only": "OFF"})
    assert "super_read_only=OFF is persisted" in fault

"""Which hosts a word means."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from flotilla import selection
from flotilla.errors import BadOption, Refused, Unreachable
from flotilla.snapshot import Host, Snapshot


def host(name: str, zone: str = "eu-central-1a", state: str = "running") -> Host:
    role, _, number = name.rpartition("-")
    born = datetime(2026, 1, 1, tzinfo=UTC)
    return Host(
        name, f"i-{name}", role, int(number), zone, state, "10.0.0.1", None, "ami-1", "t3.small",
        born, {}, None,
    )  # fmt: skip


FLEET = Snapshot(0, (host("lb-1"), host("app-1"), host("app-2", "eu-central-1b"), host("mysql-1")))


def names(wanted: str, fleet: Snapshot = FLEET) -> list[str]:
    return [one.name for one in selection.hosts(fleet, wanted)]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("app-2", ["app-2"]),
        ("i-app-2", ["app-2"]),
        ("app", ["app-1", "app-2"]),
        ("eu-central-1b", ["app-2"]),
        ("all", ["lb-1", "app-1", "app-2", "mysql-1"]),
        ("mysql, app-1 ,app", ["app-1", "app-2", "mysql-1"]),
    ],
)
def test_a_word_is_a_host_a_role_a_zone_or_all(wanted, meant):
    assert names(wanted) == meant


def test_an_unknown_word_is_answered_with_what_there_is():
    with pytest.raises(BadOption) as caught:
        names("ap-1")
    assert "did you mean 'app-1'" in str(caught.value)
    assert "roles: lb, app, mysql" in str(caught.value)
    assert "zones: eu-central-1a, eu-central-1b" in str(caught.value)


@pytest.mark.parametrize("nothing", ["", " ", ",", " , "])
def test_no_word_is_no_host_and_never_all_of_them(nothing):
    with pytest.raises(BadOption):
        names(nothing)


def test_one_unknown_word_among_known_ones_is_still_refused():
    with pytest.raises(BadOption):
        names("app,nobody")


def test_a_role_leaves_out_hosts_that_do_not_run():
    stopped = Snapshot(0, (host("app-1"), host("app-2", state="stopped")))
    assert names("app", stopped) == ["app-1"]


def test_a_named_host_that_does_not_run_is_said_to_be_so():
    stopped = Snapshot(0, (host("app-1"), host("app-2", state="stopped")))
    with pytest.raises(Unreachable, match="app-2 is stopped"):
        names("app-2", stopped)


def test_nothing_left_is_refused():
    with pytest.raises(Refused, match="no hosts"):
        names("all", replace(FLEET, hosts=()))
    with pytest.raises(Refused, match="no host runs"):
        names("app", Snapshot(0, (host("app-1", state="stopped"),)))

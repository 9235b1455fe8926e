"""Which database hosts are taken away for work, in which order, and when not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mysql_model import NAMES, Model, with_member

from flotilla.rules.mysql import Refusal, Repair, repair
from flotilla.rules.mysql_maintain import (
    Need,
    Rolling,
    begun,
    needs,
    rolling,
    size,
    steps,
    types,
    why_not_patch,
)
from flotilla.rules.mysql_topology import Record, SemiSync, Topology
from flotilla.rules.packages import Upgrade, upgrades

SAID = """\
Inst mysql-server-core-9.7 [9.7.4-1] (9.7.5-1 Debian:unstable [amd64])
Inst mysql-server [2:9.7.4-1] (2:9.7.5-1 Debian:unstable [all]) []
Inst libnew (1.0 Debian:unstable [amd64])
Conf mysql-server (9.7.5-1 Debian:unstable [amd64])
""".splitlines()


@pytest.fixture
def whole() -> tuple[Topology, Record, Repair]:
    """A cluster of three; mysql-1 is its primary."""
    model = Model()
    for _ in range(2):
        plan = repair(model.look(), model.record)
        assert not isinstance(plan, Refusal)
        for step in plan.steps:
            model.apply(step, plan.primary.name, plan.term)
    assert model.record
    done = repair(model.look(), model.record)
    assert isinstance(done, Repair)
    return model.look(), model.record, done


def test_replicas_come_first_and_the_primary_last(whole) -> None:
    topology, _, repaired = whole
    assert rolling(topology, repaired, NAMES) == Rolling(("mysql-2", "mysql-3"), "mysql-1")


@given(st.sets(st.sampled_from(NAMES)))
def test_only_the_hosts_that_need_it_are_taken_away(wanted: set[str]) -> None:
    model = Model()
    for _ in range(2):
        plan = repair(model.look(), model.record)
        assert not isinstance(plan, Refusal)
        for step in plan.steps:
            model.apply(step, plan.primary.name, plan.term)
    done = repair(model.look(), model.record)
    assert isinstance(done, Repair)
    found = rolling(model.look(), done, wanted)
    assert isinstance(found, Rolling)
    assert {*found.replicas, found.primary} - {None} == wanted
    assert found.primary in {None, done.primary.name}


def test_nothing_begins_on_a_cluster_that_is_not_whole(whole) -> None:
    topology, record, _ = whole
    apart = with_member(topology, "mysql-3", replication=None)
    broken = repair(apart, record)
    assert isinstance(broken, Repair)
    refused = rolling(apart, broken, ["mysql-2"])
    assert isinstance(refused, Refusal)
    assert refused.next == "fab mysql.ensure"


def test_the_only_other_acknowledging_replica_stays(whole) -> None:
    topology, _, repaired = whole
    mute = with_member(topology, "mysql-3", semi_sync=SemiSync(replica=True))
    refused = rolling(mute, repaired, ["mysql-2"])
    assert isinstance(refused, Refusal)
    assert "1 acknowledging" in refused.what


def test_a_silent_member_is_a_reason_to_wait(whole) -> None:
    topology, record, _ = whole
    fewer = replace(topology, members=topology.members[:2], silent={"mysql-3": "it is off"})
    plan = repair(fewer, record)
    assert isinstance(plan, Repair)
    refused = rolling(fewer, plan, ["mysql-2"])
    assert isinstance(refused, Refusal)
    assert "it is off" in refused.what


def test_upgrades_are_read_from_what_apt_would_do() -> None:
    assert upgrades(SAID) == (
        Upgrade("mysql-server-core-9.7", "9.7.4-1", "9.7.5-1"),
        Upgrade("mysql-server", "2:9.7.4-1", "2:9.7.5-1"),
    )


def test_a_host_needs_what_was_changed_under_its_server() -> None:
    assert needs("mysql-1", (), ()) is None
    assert needs("mysql-1", (), ["/etc/x.cnf"]) == Need(
        "mysql-1", ("/etc/x.cnf changed after the server was started",)
    )
    asked = needs("mysql-1", (), (), anyway=True)
    assert asked
    assert asked.reasons == ("a restart was asked for",)


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ("9.7.4-1", "9.7.5-1", True),
        ("2:9.7.4-1+b1", "2:9.7.10-1", True),
        ("9.7.4-1", "9.8.0-1", False),
        ("8.4.6-1", "9.7.0-1", False),
    ],
)
def test_another_series_is_no_patch(old: str, new: str, allowed: bool) -> None:
    need = Need("mysql-1", (), (Upgrade("mysql-server-core", old, new),))
    assert (why_not_patch([need]) is None) == allowed
    library = Need("mysql-1", (), (Upgrade("libprotobuf32", "3.21.1", "4.0.0"),))
    assert why_not_patch([library]) is None


def test_the_plan_says_what_becomes_of_the_primary() -> None:
    told = list(steps(Rolling(("mysql-2",), "mysql-1")))
    assert "move its role" in told[-1]
    assert len(list(steps(Rolling(("mysql-2",), None)))) == 1


def test_hosts_of_another_type_are_named() -> None:
    present = {"mysql-1": "t3.medium", "mysql-2": "r6g.large"}
    assert types(present, "r6g.large") == {"mysql-1": "t3.medium"}


@pytest.mark.parametrize(
    ("configured", "present", "unfinished", "number"),
    [
        (3, ["mysql-1", "mysql-2", "mysql-3"], [], 4),
        (4, ["mysql-1", "mysql-2", "mysql-3"], [], 4),
        (3, ["mysql-1", "mysql-3"], [], 3),
        (3, ["mysql-1", "mysql-2", "mysql-3", "mysql-4"], [], 5),
        (3, ["mysql-1", "mysql-2", "mysql-3", "mysql-4"], ["mysql-4"], 4),
        (3, ["mysql-1", "mysql-3", "mysql-4"], [], 4),
    ],
)
def test_a_second_run_finishes_a_host_before_it_launches_another(
    configured: int, present: list[str], unfinished: list[str], number: int
) -> None:
    assert size(configured, present, unfinished) == number


def test_what_an_earlier_run_left_is_seen(whole) -> None:
    topology, _, _ = whole
    assert begun(topology, 3) == []
    half = with_member(topology, "mysql-2", closed=True)
    half = replace(half, silent={"mysql-4": "it boots", "mysql-3": "it is off"})
    assert begun(half, 3) == ["mysql-2", "mysql-4"]

"""Every way in which a primary is lost, on the standing fleet, judged by clients that write."""

from __future__ import annotations

from typing import Any

import pytest
from databases import Databases, refused
from guests import needs_lab
from typed import fab

pytestmark = needs_lab

# As long as AWS takes at times.
STOP_SECONDS = 30


def drilled(fault: str, *more: str) -> dict[str, Any]:
    """One run of a drill in which every promise was kept; its figures."""
    told = fab("drill.mysql", "--fault", fault, *more)
    assert told["broken"] == []
    (run,) = told["each"]
    assert run["acked"] > 0
    assert (told["lost"], run["dual_writable_seconds"]) == (0, 0)
    return run


def test_a_killed_primary_is_replaced_in_seconds_and_the_report_proves_what_was_kept(
    databases: Databases,
) -> None:
    old, term = databases.primary, databases.state.record.term
    run = drilled("kill")
    assert (run["old"], run["new"]) == (old, databases.primary)
    assert run["old"] != run["new"]
    assert databases.state.record.term == term + 1, "one change of primary is one term"
    report = databases.report()
    assert (report["term"], report["old"], report["new"]) == (term + 1, old, run["new"])
    assert report["evidence"]
    assert report["proofs"]
    assert report["seconds"]
    assert report["loss"]["count"] == 0


def test_a_living_primary_is_not_replaced_because_somebody_says_so(databases: Databases) -> None:
    with databases.clients() as writing:
        told = databases.failover(code=3)
        figures = writing.stop()
    refused(told, databases.primary)
    assert figures["write_gap_seconds"] < 1


@pytest.mark.drill
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fault",
    [
        "freeze",
        "partition",
        "partition-replicas-only",
        "zone",
        "switchover",
        "restart",
        "disk-full",
        "too-many-connections",
    ],
)
def test_whatever_takes_the_primary_takes_no_acknowledged_write(
    databases: Databases, fault: str
) -> None:
    drilled(fault)


@pytest.mark.drill
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["stop-instance", "partition", "freeze"])
def test_an_ec2_that_takes_half_a_minute_to_stop_a_host_makes_no_outage_longer(
    databases: Databases, fault: str
) -> None:
    run = drilled(fault, "--stop-seconds", str(STOP_SECONDS))
    assert run["write_gap_seconds"] < STOP_SECONDS / 2


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_after_a_failover_the_playbook_changes_nothing(databases: Databases) -> None:
    run = drilled("kill")
    hosts = fab("fleet.configure", "--yes")["hosts"]
    assert {host: n["changed"] for host, n in hosts.items() if n["changed"]} == {}
    assert databases.primary == run["new"]


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_two_failures_one_after_the_other_are_two_terms_and_lose_nothing(
    databases: Databases,
) -> None:
    first, term = databases.primary, databases.state.record.term
    with databases.clients() as writing:
        databases.kill(first)
        second = databases.moved(first)
        databases.subject.mend(first, writing.revive)
        databases.records.acknowledge()
        databases.kill(second)
        third = databases.moved(second)
        databases.subject.mend(second, writing.revive)
        writing.stop()
    assert third != second
    assert databases.state.record.term == term + 2


@pytest.mark.drill
@pytest.mark.timeout(300)
def test_a_primary_that_dies_with_its_successor_is_replaced_by_the_last_one_or_by_nobody(
    databases: Databases,
) -> None:
    """Two of three are gone: no majority is left to say so, and nobody acknowledges."""
    first = databases.primary
    databases.write(first, "kept")
    databases.dies(first)
    second = databases.moved(first)
    databases.records.acknowledge()
    databases.write(second, "kept too")
    databases.dies(second)
    databases.stays()
    databases.lives(first)
    third = databases.moved(second)
    assert {"kept", "kept too"} <= databases.rows(third)

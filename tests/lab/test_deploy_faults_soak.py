"""Releases that turn out bad when clients use them, and ways back that break half-way."""

from __future__ import annotations

import pytest
from guests import needs_lab, until
from rolling import Rolling, strike
from typed import fab

pytestmark = [needs_lab, pytest.mark.drill]


def test_a_release_that_fails_its_clients_is_taken_back_by_the_canary(fleet: Rolling) -> None:
    """Its health checks are green: only the answers tell."""
    with fleet.clients() as clients:
        outcome = fleet.deploy(fleet.releases["errors-after-soak"], code=2)
        clients.mark("taken back")
        fleet.is_whole(fleet.version)
        seen = clients.stop()
    assert outcome["result"] == "rolled back"
    assert outcome["seconds"] <= 45
    assert len(outcome["steps"]) == 1, "only the canary may have been touched"
    assert 0 < seen["failed"] < seen["served"] * 0.2, "clients of the canary saw it while it soaked"
    assert seen["phases"]["taken back"]["failed"] == 0


def test_a_release_that_turns_bad_later_is_taken_back_from_every_host(fleet: Rolling) -> None:
    with fleet.clients() as clients:
        outcome = fleet.deploy(fleet.releases["sours"], code=2)
        clients.mark("taken back")
        fleet.is_whole(fleet.version)
        seen = clients.stop()
    assert outcome["result"] == "rolled back"
    assert len(outcome["steps"]) > 1
    assert seen["phases"]["taken back"]["failed"] == 0


def test_a_way_back_that_breaks_stops_with_the_names_and_the_others_serve(fleet: Rolling) -> None:
    """The canary ends up nowhere: its new release does not start and its host is lost then."""
    bastion = fleet.hosts("bastion")[0]
    canary = fleet.canary()
    with fleet.clients() as clients:
        with fleet.deploying(
            r"before write going back.*",
            strike(canary.instance_id, "cut", **{"from": bastion.instance_id}),
            fleet.releases["ends"],
        ) as run:
            outcome = run.exits(2)
        assert outcome["result"] == "stopped"
        assert list(outcome["left"]) == [canary.name]
        fab("lab.heal")
        until(fleet.can_be_seen, 60, "the host answers again")
        fab("deploy.abort", "--yes")
        clients.saw_nothing()
    fleet.is_whole(fleet.version)


def test_a_named_release_is_brought_back_by_a_rollback(fleet: Rolling) -> None:
    before = fleet.version
    with fleet.clients() as clients:
        fleet.deploy()
        outcome = fab("deploy.rollback", "--yes")
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"], outcome["version"]) == ("done", 0, before)
    fleet.is_whole(before)

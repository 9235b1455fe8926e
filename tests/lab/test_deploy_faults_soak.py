"""Releases that turn out bad when clients use them, and ways back that break half-way."""

from __future__ import annotations

import pytest
from guests import needs_lab, until
from releases import SOUR
from rolling import ONE_BY_ONE, Rolling, on_host, strike
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
    """The canary has passed its soak and fails while the second host is watched."""
    canary = fleet.canary()
    moment = rf"after order (?!{canary.name} )\S+ state ready"
    turn = on_host(f"touch {SOUR}", canary.name)
    try:
        with fleet.clients() as clients:
            with fleet.deploying(moment, turn, fleet.releases["sours"], sizes=ONE_BY_ONE) as run:
                outcome = run.exits(2)
            clients.mark("taken back")
            fleet.is_whole(fleet.version)
            seen = clients.stop()
    finally:
        fleet.command(canary.name, f"rm -f {SOUR}")
    assert outcome["result"] == "rolled back"
    assert canary.name in outcome["reason"]
    assert len(outcome["steps"]) == 2
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
        fleet.heal()
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

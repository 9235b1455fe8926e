"""Releases that are not fit, and hosts that cannot take one: clients never get to see them."""

from __future__ import annotations

import pytest
from guests import needs_lab
from rolling import Rolling, on_host, struck

pytestmark = [needs_lab, pytest.mark.drill]


def test_an_application_that_is_slow_to_start_gets_no_request_before_it_is_ready(
    fleet: Rolling,
) -> None:
    """Silent for 1.5 s, then wrong answers for 1.5 s: every request that came too soon fails."""
    with fleet.clients() as clients:
        outcome = fleet.deploy(fleet.releases["slow-boot"])
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"]) == ("done", 0)
    assert all(steps["ready on the host"] >= 2.5 for steps in outcome["steps"].values())
    fleet.is_whole(fleet.releases["slow-boot"])


@pytest.mark.parametrize(
    ("kind", "said"), [("ends", "ended on purpose"), ("never-healthy", "spoilt on purpose")]
)
def test_a_release_that_is_never_fit_is_taken_back_and_the_reason_is_told(
    fleet: Rolling, kind: str, said: str
) -> None:
    """An application that takes no more than 10 s to start, so that no more are waited."""
    quick, release = {"application.boot_seconds": 10}, fleet.releases[kind]
    with (
        fleet.clients() as clients,
        fleet.deploying(r"after write begin", "true", release, settings=quick) as run,
    ):
        outcome = run.exits(2)
        clients.saw_nothing()
    assert outcome["result"] == "rolled back"
    assert said in outcome["reason"]
    assert len(outcome["steps"]) == 1, "only the canary may have been touched"
    assert outcome["seconds"] <= 30
    fleet.is_whole(fleet.version)


def test_a_health_check_that_flaps_does_not_pass_the_gate(fleet: Rolling) -> None:
    with fleet.clients() as clients:
        outcome = fleet.deploy(fleet.releases["flaps"], code=2)
        clients.saw_nothing()
    assert outcome["result"] == "rolled back"
    assert len(outcome["steps"]) == 1, "only the canary may have been touched"
    fleet.is_whole(fleet.version)


def test_a_migration_that_fails_leaves_every_host_in_rotation(fleet: Rolling) -> None:
    with fleet.clients() as clients:
        told = fleet.deploy(fleet.releases["unmigratable"], code=2)
        clients.saw_nothing()
    assert "cannot migrate on purpose" in told["error"]["what"]
    assert "No host left rotation" in told["error"]["untouched"]
    fleet.is_whole(fleet.version)


def test_a_host_without_room_for_the_release_stops_the_deploy_before_any_host_leaves(
    fleet: Rolling,
) -> None:
    full = fleet.hosts("app")[1]
    with (
        fleet.clients() as clients,
        struck(full.instance_id, "fill-disk", path="/srv/app/releases", free="1000000"),
    ):
        told = fleet.deploy(fleet.fresh(), code=2)
        clients.saw_nothing()
    assert full.name in told["error"]["what"]
    assert "No host left rotation" in told["error"]["untouched"]
    fleet.is_whole(fleet.version)


def test_a_release_that_is_gone_when_the_canary_is_switched_costs_nobody_anything(
    fleet: Rolling,
) -> None:
    """The switch itself breaks, after the host has left rotation."""
    version = fleet.fresh()
    vanish = on_host(f"rm -r /srv/app/releases/{version}", "app")
    with (
        fleet.clients() as clients,
        fleet.deploying(r"before call \S+ switch .*", vanish, version) as run,
    ):
        outcome = run.exits(2)
        clients.saw_nothing()
    assert outcome["result"] == "rolled back"
    assert "is not on this host" in outcome["reason"]
    fleet.is_whole(fleet.version)

"""Hosts and the API that go away under a deploy, and hosts that somebody else changes."""

from __future__ import annotations

import pytest
from guests import needs_lab, until
from rolling import ONE_BY_ONE, Rolling, on_host, strike, struck
from typed import STOP, fab

pytestmark = [needs_lab, pytest.mark.drill]


def test_a_deploy_that_has_begun_needs_no_aws_api(fleet: Rolling) -> None:
    with (
        fleet.clients() as clients,
        fleet.deploying(r"before order \S+ state drain", strike("api", "api-outage")) as run,
    ):
        outcome = run.exits(0)
        fleet.heal()
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"]) == ("done", 0)
    # The lock could not be given back; it frees itself, or is taken over.
    fleet.deploy(fleet.other, "--take-over")
    fleet.is_whole(fleet.other)


def test_without_the_aws_api_no_deploy_begins(fleet: Rolling) -> None:
    with fleet.clients() as clients:
        with struck("api", "api-outage"):
            told = fleet.deploy(code=4)
        clients.saw_nothing()
    assert told["error"]["next"]
    fleet.is_whole(fleet.version)


def test_a_slow_aws_api_makes_a_deploy_slower_and_no_less_safe(fleet: Rolling) -> None:
    with fleet.clients() as clients, struck("api", "slow-api", seconds="1"):
        outcome = fleet.deploy()
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"]) == ("done", 0)
    fleet.is_whole(fleet.other)


def test_a_host_that_is_lost_in_maintenance_stays_out_and_the_others_serve(fleet: Rolling) -> None:
    bastion = fleet.hosts("bastion")[0]
    canary = fleet.canary()
    with fleet.clients() as clients:
        with fleet.deploying(
            r"after order \S+ state maint",
            strike(canary.instance_id, "cut", **{"from": bastion.instance_id}),
        ) as run:
            outcome = run.exits(2)
        assert outcome["result"] == "stopped"
        assert list(outcome["left"]) == [canary.name]
        views = fleet.views(canary.name)
        assert {server.status for server in views.values()} == {"MAINT"}
        told = fleet.deploy(code=4)
        assert canary.name in told["error"]["what"]
        fleet.heal()
        until(fleet.can_be_seen, 60, "the host answers again")
        fleet.deploy(fleet.version, "--adopt")
        clients.saw_nothing()
    fleet.is_whole(fleet.version)


def test_a_host_that_somebody_took_out_stops_the_deploy_until_it_is_adopted(
    fleet: Rolling,
) -> None:
    taken = fleet.hosts("app")[-1].name
    with fleet.clients() as clients:
        fleet.order(taken, "state maint")
        told = fleet.deploy(code=3)
        assert f"{taken} was taken out of rotation" in told["error"]["what"]
        outcome = fleet.deploy(fleet.other, "--adopt")
        clients.saw_nothing()
    assert outcome["result"] == "done"
    fleet.is_whole(fleet.other)


def test_a_host_taken_out_in_the_middle_is_not_counted_on(fleet: Rolling) -> None:
    """A floor of 50% of three is two: with the canary back and another one gone, none may go."""
    canary, _, last = fleet.order_of_hosts()
    order = f"echo 'set server app/{last.name} state maint' | socat - /run/haproxy/admin.sock"
    moment, taken_out = r"after order \S+ state ready", on_host(order, "lb")
    with fleet.clients() as clients:
        with fleet.deploying(moment, taken_out, sizes=ONE_BY_ONE) as run:
            outcome = run.exits(2)
        assert "would serve" in outcome["reason"]
        assert list(outcome["left"]) == [canary.name], "nor may the canary go back now"
        assert len(fleet.up()) == 2
        fleet.deploy(fleet.version, "--adopt")
        clients.saw_nothing()
    fleet.is_whole(fleet.version)


@pytest.mark.timeout(480)  # a host boots, or is forgotten, meanwhile
def test_a_host_that_is_lost_in_the_middle_is_named_and_its_successor_gets_the_release(
    fleet: Rolling,
) -> None:
    """Auto Scaling replaces it; it comes with the release of before and is brought along."""
    wanted, lost = fleet.other, fleet.order_of_hosts()[1]
    with fleet.clients() as clients:
        with fleet.deploying(
            r"after order \S+ state ready", strike(lost.instance_id, "kill")
        ) as run:
            outcome = run.exits(2)
        assert lost.name in outcome["reason"]
        until(lambda: fleet.is_replaced(lost), 100, "another host has taken its place")
        until(fleet.is_known, 100, "load balancers know it")
        fleet.deploy(wanted, "--adopt")
        seen = clients.stop()
    # What was in flight on a host that loses its power may be lost with it; nothing else is.
    assert seen["failed"] <= 3, seen["failures"]
    fleet.is_whole(wanted)


@pytest.mark.timeout(480)  # a host boots, or is forgotten, meanwhile
def test_a_host_that_joins_in_the_middle_ends_on_the_same_release(fleet: Rolling) -> None:
    wanted = fleet.other
    try:
        with fleet.clients() as clients:
            with fleet.deploying(r"after order \S+ state maint", STOP) as run:
                with run.paused():
                    fleet.desire(4)
                    until(lambda: len(fleet.hosts("app")) == 4, 30, "another host is launched")
                outcome = run.exits(0)
            until(lambda: len(fleet.up()) == 4, 120, "the new host serves")
            clients.saw_nothing()
        assert (outcome["result"], outcome["failed"]) == ("done", 0)
        assert fleet.running() == {wanted}
    finally:
        fab("fleet.scale", "app", "3", "--yes")
    fleet.is_whole(wanted)

"""Drills of Redis and of the load balancer pair on the standing fleet: each fault once."""

from __future__ import annotations

from typing import Any

import pytest
from guests import needs_lab
from typed import fab, typed

from flotilla.rules import drill_lb, drill_redis
from flotilla.rules.drill_fault import Ends
from flotilla.settings import Settings

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.timeout(400)]

# A crash, a silence, the network, and a move that nothing breaks: the rest repeats them.
SHORT = {"kill", "freeze", "switchover", "haproxy-kill", "both-claim", "failover"}


def each(faults: Any) -> list[Any]:
    return [
        pytest.param(fault, id=name, marks=[] if name in SHORT else [pytest.mark.thorough])
        for name, fault in faults.items()
    ]


@pytest.mark.parametrize("fault", each(drill_redis.FAULTS))
def test_redis_gets_over_it_and_clients_that_wait_lose_nothing(
    standing_fleet: Settings, fault: Any
) -> None:
    told = fab("drill.redis", "--fault", fault.name, "--wait", "1")
    (run,) = told["each"]
    assert told["broken"] == []
    assert (told["lost"], run["not_mended"]) == (0, "")
    assert told["acked"] > 100
    assert fault.ends is not Ends.MOVED or run["old"] != run["new"]
    now = fab("redis.status")
    assert (now["primary"], now["problems"]) == (run["new"], [])


@pytest.mark.parametrize("fault", each(drill_lb.FAULTS))
def test_the_address_ends_with_one_that_serves(standing_fleet: Settings, fault: Any) -> None:
    told = fab("drill.lb", "--fault", fault.name)
    (run,) = told["each"]
    assert told["broken"] == []
    assert told["served"] > 300
    assert fault.ends is not Ends.MOVED or run["old"] != run["new"]
    now = fab("lb.status")
    assert (now["owner"], now["problems"]) == (run["new"], [])


def test_the_address_is_moved_from_who_has_it_and_from_nobody_else(
    standing_fleet: Settings,
) -> None:
    owner = fab("lb.status")["owner"]
    other = next(one["name"] for one in fab("lb.status")["members"] if not one["owner"])
    assert owner in typed("lb.failover", code=3).stderr, "the plan, and nothing else"
    assert fab("lb.status")["owner"] == owner
    assert fab("lb.failover", "--source", other, "--yes")["changed"] is False
    refused = fab("lb.failover", "--source", "lb-9", "--yes", code=5)["error"]
    assert "lb-1" in refused["what"]
    done = fab("lb.failover", "--yes")
    assert (done["old"], done["new"]) == (owner, other)
    assert fab("lb.status")["problems"] == []


def test_a_move_is_refused_where_nobody_else_could_serve(standing_fleet: Settings) -> None:
    members = fab("lb.status")["members"]
    other = next(one["name"] for one in members if not one["owner"])
    typed("fleet.run", "--on", other, "--sudo", "systemctl stop keepalived")
    try:
        refused = fab("lb.failover", "--yes", code=3)["error"]
        assert "no other load balancer" in refused["what"]
    finally:
        typed("fleet.run", "--on", other, "--sudo", "systemctl start keepalived")

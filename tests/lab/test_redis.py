"""The Redis of the standing fleet: its role is moved while clients are served."""

from __future__ import annotations

import time

import pytest
from guests import needs_lab
from typed import fab, typed

from flotilla.aws import edge
from flotilla.settings import Settings
from flotilla.traffic import Background

pytestmark = [needs_lab, pytest.mark.drill]


def test_a_planned_move_is_made_twice_while_clients_are_served(standing_fleet: Settings) -> None:
    old = fab("redis.status")["primary"]
    with Background("--url", edge.url(standing_fleet), "--rate", "40") as traffic:
        time.sleep(3)
        there = fab("redis.switchover", "--yes")
        back = fab("redis.switchover", "--to", old, "--yes")
        time.sleep(3)
        seen = traffic.stop()
    assert (there["old"], back["new"]) == (old, old)
    assert there["new"] != old
    assert max(there["paused_seconds"], back["paused_seconds"]) < 1.0
    assert seen["served"] > 0
    assert seen["failed"] == 0
    now = fab("redis.status")
    assert (now["primary"], now["problems"]) == (old, [])


def test_who_has_the_role_already_is_left_and_who_is_nobody_is_refused(
    standing_fleet: Settings,
) -> None:
    primary = fab("redis.status")["primary"]
    assert fab("redis.switchover", "--to", primary, "--yes")["changed"] is False
    refused = fab("redis.switchover", "--to", "redis-9", "--yes", code=5)["error"]
    assert "redis-1" in refused["what"]
    plan = typed("redis.switchover", code=3)
    assert primary in plan.stderr

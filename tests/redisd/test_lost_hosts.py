"""Hosts that are gone for good, and the empty ones that come in their place."""

from __future__ import annotations

import shutil
from contextlib import suppress

import pytest
from redisd.group import CLUSTER, HOSTS, Group, redis_node
from redisd.operators import Hands

from flotilla.errors import HostFailed
from flotilla.wait import DeadlineError, until

pytestmark = pytest.mark.timeout(240)


def lose(group: Group, hands: Hands, name: str) -> None:
    """The host with its disk; what has its name afterwards holds nothing."""
    group.sentinels[name].end()
    group.servers[name].end()
    shutil.rmtree(hands.home(name) / "data")
    for file in ("redis.conf", "sentinel.conf"):
        (hands.home(name) / file).unlink()


def starts(hands: Hands, name: str, service: str) -> bool:
    """One try of its service manager, which tries again."""
    with suppress(HostFailed):
        return hands.run(name, f"systemctl start {service}").ok
    return False


def known(group: Group, name: str) -> set[str]:
    """The servers that a Sentinel knows of."""
    ask, pairs = group.sentinel(name).execute_command, redis_node.redis_move.pairs
    rows = [ask("SENTINEL", "MASTER", CLUSTER), *ask("SENTINEL", "REPLICAS", CLUSTER)]
    return {pairs(row)["ip"] for row in rows}


def test_with_a_majority_lost_nobody_takes_writes_until_empty_hosts_replace_it_and_nothing_is_lost(
    group: Group, hands: Hands
) -> None:
    client = group.app("redis-1")
    for number in range(50):
        client.rpush("kept", number)
    assert client.wait(2, 5000) == 2
    for name in ("redis-1", "redis-2"):
        lose(group, hands, name)
    with pytest.raises(DeadlineError):
        until(lambda: group.offered() != [], seconds=8)
    for name in ("redis-1", "redis-2"):
        until(lambda n=name: starts(hands, n, "redis-sentinel"), seconds=60)
    for name in ("redis-1", "redis-2"):
        assert known(group, name) == set(HOSTS.values())
    for name in ("redis-2", "redis-1"):
        until(lambda n=name: starts(hands, n, "redis-server"), seconds=90)
    until(group.is_whole, seconds=60)
    until(lambda: group.offered() == ["redis-3"], seconds=10)
    for name in HOSTS:
        found = group.app(name, decode_responses=True).lrange("kept", 0, -1)
        assert found == [str(number) for number in range(50)]

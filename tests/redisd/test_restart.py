"""What is on the disk of a Redis host is there after a restart."""

from __future__ import annotations

import pytest
from redisd.group import HOSTS, PORT, Group, redis_node
from redisd.operators import Hands

from flotilla.wait import until

pytestmark = pytest.mark.timeout(240)
RedisError = redis_node.redis.exceptions.RedisError


def test_transactions_and_scripts_outlive_a_restart_and_nobody_is_the_default_user(
    group: Group, hands: Hands
) -> None:
    there = group.app("redis-1", decode_responses=True)
    with there.pipeline() as transaction:
        transaction.set("in a transaction", 1).set("too", 1).execute()
    there.eval("redis.call('set', KEYS[1], 1) redis.call('set', KEYS[2], 1)", 2, "script", "both")
    there.set("plain", 1)
    there.wait(2, 5000)
    written = {"in a transaction", "too", "script", "both", "plain"}
    for name in ("redis-2", "redis-3", "redis-1"):
        group.servers[name].stop()
    for name in ("redis-1", "redis-2", "redis-3"):
        hands.run(name, "systemctl start redis-server", check=False)
    until(group.is_whole, seconds=90)
    assert set(group.app(group.primary(), decode_responses=True).scan_iter()) == written
    for password in (None, ""):
        stranger = redis_node.redis_tls.client(
            redis_node.AUTHORITY,
            host=HOSTS["redis-1"],
            port=PORT,
            username="default",
            password=password,
        )
        with pytest.raises(RedisError):
            stranger.get("plain")

"""What an operator types to patch Redis, on real servers and Sentinels under load."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from redisd.group import CLUSTER, HOSTS, Group, redis_node
from redisd.operators import Hands
from redisd.test_move import Writer, frozen, there, writing

from flotilla.errors import HostFailed, Refused
from flotilla.redis import operate, operate_maintain
from flotilla.settings import Settings
from flotilla.wait import until

pytestmark = pytest.mark.timeout(240)
ALL = "redis-server redis-sentinel"


def yes(_: str) -> None:
    """Go on."""


def patch(settings: Settings, *, restart: bool = False, confirmed: Any = yes) -> dict[str, Any]:
    return operate_maintain.patch(settings, restart=restart, confirmed=confirmed, said=yes)


def stops(hands: Hands) -> list[str]:
    return [line for line in hands.did if ": stop" in line]


def epoch(group: Group) -> int:
    """How often a replica was made primary."""
    seen = group.sentinel("redis-3").execute_command("SENTINEL", "MASTER", CLUSTER)
    return int(redis_node.redis_move.pairs(seen)["config-epoch"])


def goes_on(writer: Writer) -> None:
    count = len(writer.acked)
    until(lambda: len(writer.acked) > count + 20, seconds=10)


def test_packages_come_to_replicas_first_and_to_the_primary_last_and_no_write_is_lost(
    group: Group, hands: Hands, settings: Settings
) -> None:
    hands.pending(*HOSTS)
    plans: list[str] = []
    began = {name: group.servers[name].started for name in HOSTS}
    failovers = epoch(group)
    with writing(group) as writer:
        done = patch(settings, confirmed=plans.append)
        goes_on(writer)
    assert [line.partition(":")[0] for line in stops(hands)] == ["redis-2", "redis-3", "redis-1"]
    assert "redis-1: move its role, then upgrade" in plans[0]
    assert [(move["old"], move["new"] != "redis-1") for move in done["moves"]] == [
        ("redis-1", True)
    ]
    assert done["hosts"]["redis-2"][0] == "redis-server 5:8.0.2-3 -> 5:8.0.3-1"
    assert all(group.servers[name].started > began[name] for name in HOSTS)
    assert set(writer.acked) <= there(group)
    assert epoch(group) == failovers + 1, "the planned one, and no stop started another"
    assert writer.gap < 10.0
    assert writer.most_offered == 1
    assert operate.seen(settings)["problems"] == []
    assert not patch(settings)["changed"]


def test_what_is_newer_than_the_service_is_restarted_and_nothing_else(
    group: Group, hands: Hands, settings: Settings
) -> None:
    began = group.servers["redis-1"].started
    unit = "etc/systemd/system/redis-sentinel.service.d/flotilla.conf"
    (hands.root("redis-1") / unit).write_text("[Service]\n")
    owned = hands.home("redis-3") / "flotilla.conf"
    owned.write_text(owned.read_text().replace("maxmemory 64mb", "maxmemory 128mb"))
    done = patch(settings)
    assert stops(hands) == ["redis-3: stop redis-server", "redis-1: stop redis-sentinel"]
    assert done["hosts"]["redis-3"] == ["the running Redis does not have maxmemory as it is set"]
    assert group.client("redis-3").config_get("maxmemory") == {"maxmemory": str(128 << 20)}
    assert (done["moves"], group.servers["redis-1"].started) == ([], began)


def test_with_anything_out_of_order_nothing_is_touched(
    group: Group, hands: Hands, settings: Settings
) -> None:
    group.sentinels["redis-3"].end()
    hands.pending(*HOSTS)
    with pytest.raises(Refused, match=r"redis-3.*Sentinel") as refused:
        patch(settings)
    assert refused.value.untouched == "Nothing was changed"
    assert stops(hands) == []


def test_another_series_is_refused_before_anything_is_touched(
    group: Group, hands: Hands, settings: Settings
) -> None:
    hands.pending("redis-2", to="5:8.2.1-1")
    with pytest.raises(Refused, match=r"change the series: redis-server 5:8.0.2-3 -> 5:8.2.1-1"):
        patch(settings)
    assert stops(hands) == []


def test_a_host_whose_packages_do_not_come_runs_as_before_and_stops_the_rest(
    group: Group, hands: Hands, settings: Settings
) -> None:
    hands.pending(*HOSTS)
    (hands.root("redis-3") / "broken").touch()
    with writing(group) as writer:
        with pytest.raises(HostFailed, match="redis-3: exited 100: E: dpkg") as failed:
            patch(settings)
        goes_on(writer)
    assert "redis-2 done before" in failed.value.untouched
    assert [line.partition(":")[0] for line in stops(hands)] == ["redis-2", "redis-3"]
    until(lambda: not operate.seen(settings)["problems"], seconds=20)
    assert group.primary() == "redis-1"


def test_a_primary_that_dies_meanwhile_is_failed_over_and_then_restarted_as_the_replica_it_is(
    group: Group, hands: Hands, settings: Settings
) -> None:
    """Its service manager starts it again, as on a host."""

    def die() -> None:
        group.servers["redis-1"].end()
        until(lambda: _has_moved(group), seconds=30)
        hands.run("redis-1", "systemctl start redis-server")

    hands.on["redis-2: start"] = die
    done = patch(settings, restart=True)
    assert sorted(line.partition(":")[0] for line in stops(hands)) == sorted(HOSTS)
    assert group.primary() != done["moves"][0]["old"]


def _has_moved(group: Group) -> bool:
    with suppress(LookupError):
        return group.primary() != "redis-1"
    return False


def test_what_is_in_the_file_and_in_the_server_is_told_apart(group: Group, hands: Hands) -> None:
    for name in HOSTS:
        assert hands.run(name, f"{operate.TOOL} unread").stdout == ""
    group.client("redis-2").config_set("repl-timeout", "16")
    assert hands.run("redis-2", f"{operate.TOOL} unread").stdout == "repl-timeout\n"


def test_what_is_asked_of_a_busy_redis_is_waited_for(
    group: Group, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass over the hosts once stopped half-way, for one had not answered within 0.4 s."""
    monkeypatch.setattr(redis_node, "OWNED", hands.home("redis-2") / "flotilla.conf")
    settings, server = group.settings("redis-2"), group.servers["redis-2"]
    frozen(server, 1.5)
    assert redis_node.unread(settings) == 0
    frozen(server, 1.5)
    assert redis_node.sessions(settings, "app") == 0

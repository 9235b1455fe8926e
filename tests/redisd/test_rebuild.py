"""A replica whose data is broken is emptied and copies everything, on real servers under load."""

from __future__ import annotations

from typing import Any

import pytest
from redisd.group import HOSTS, Group
from redisd.operators import Hands
from redisd.test_maintain import goes_on, yes
from redisd.test_move import there, writing

from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.redis import operate, operate_rebuild
from flotilla.settings import Settings
from flotilla.wait import until

pytestmark = pytest.mark.timeout(240)


def rebuild(settings: Settings, host: str, confirmed: Any = yes) -> dict[str, Any]:
    return operate_rebuild.rebuild(settings, host, confirmed=confirmed, said=yes)


def spoil(group: Group, hands: Hands, name: str) -> None:
    """Its server is killed, and nothing of its append-only file can be read."""
    group.servers[name].end()
    for path in (hands.home(name) / "data" / "appendonlydir").iterdir():
        path.write_bytes(b"\0not what Redis wrote\n" * 100)


def is_a_whole_copy(group: Group, hands: Hands, name: str) -> None:
    client = group.client(name)
    assert client.info("replication")["master_link_status"] == "up"
    assert client.config_get("replica-priority") == {"replica-priority": "100"}
    assert "replica-priority 0" not in (hands.home(name) / "redis.conf").read_text()
    assert not (hands.home(name) / "data.before").exists()


def test_a_replica_that_cannot_read_its_file_is_a_whole_copy_afterwards_and_writes_go_on(
    group: Group, hands: Hands, settings: Settings
) -> None:
    sentinel = hands.home("redis-2") / "sentinel.conf"
    plans: list[str] = []
    with writing(group) as writer:
        spoil(group, hands, "redis-2")
        until(lambda: bool(operate.seen(settings)["problems"]), seconds=20)
        known = [one for one in sentinel.read_text().splitlines() if "known-" in one]
        done = rebuild(settings, "redis-2", plans.append)
        goes_on(writer)
    assert (done["host"], done["primary"]) == ("redis-2", "redis-1")
    assert done["keys"] >= 1
    assert "meanwhile only redis-3 can take over" in plans[0]
    assert "now: Redis does not answer" in plans[0]
    assert writer.gap < 10.0
    assert set(writer.acked) <= there(group)
    is_a_whole_copy(group, hands, "redis-2")
    assert known == [one for one in sentinel.read_text().splitlines() if "known-" in one]
    # And it is on the disk: what a start reads.
    hands.run("redis-2", "systemctl stop redis-server")
    hands.run("redis-2", "systemctl start redis-server")
    assert group.client("redis-2").info("keyspace")["db0"]["keys"] == done["keys"]


def test_a_rebuild_that_was_cut_off_keeps_the_old_data_and_is_never_made_primary(
    group: Group, hands: Hands, settings: Settings
) -> None:
    hands.on["redis-2: start"] = lambda: "Job failed"
    before = {p.name for p in (hands.home("redis-2") / "data" / "appendonlydir").iterdir()}
    with pytest.raises(HostFailed, match="did not start: Job failed; the old data") as failed:
        rebuild(settings, "redis-2")
    assert "redis-1 takes writes" in failed.value.untouched
    kept = hands.home("redis-2") / "data.before" / "appendonlydir"
    assert {path.name for path in kept.iterdir()} == before
    hands.run("redis-2", "systemctl start redis-server")
    assert group.client("redis-2").config_get("replica-priority") == {"replica-priority": "0"}
    # With all its data again it looks like any other, and nobody would take over from it.
    until(group.is_whole, seconds=20)
    assert ["fab redis.rebuild redis-2" in one for one in operate.seen(settings)["problems"]] == [
        True
    ]
    assert rebuild(settings, "redis-2")["primary"] == "redis-1"
    is_a_whole_copy(group, hands, "redis-2")


def test_the_primary_and_the_last_replica_keep_their_data(
    group: Group, hands: Hands, settings: Settings
) -> None:
    with pytest.raises(Refused, match="redis-1 is the primary"):
        rebuild(settings, "redis-1")
    with pytest.raises(BadOption, match="redis-9"):
        rebuild(settings, "redis-9")
    told = hands.run("redis-1", f"{operate.TOOL} rebuild", check=False)
    assert (told.rc, "it is the primary" in told.stderr) == (3, True)
    group.servers["redis-3"].end()
    with pytest.raises(Refused, match="no other replica keeps up"):
        rebuild(settings, "redis-2")
    until(lambda: group.client("redis-1").info("replication")["connected_slaves"] == 1, seconds=20)
    told = hands.run("redis-2", f"{operate.TOOL} rebuild", check=False)
    assert (told.rc, "no other replica" in told.stderr) == (3, True)
    assert not any(line.split()[1] in {"stop", "start"} for line in hands.did)
    assert all((hands.home(name) / "data" / "appendonlydir").is_dir() for name in HOSTS)

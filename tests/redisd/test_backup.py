"""Backups from a replica, and the way back, on real servers and Sentinels under load."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from mysqld.agents import _metadata
from redisd.group import CLUSTER, HOSTS, PORT, Group, redis_node
from redisd.operators import Hands
from redisd.test_lost_hosts import lose, starts
from redisd.test_maintain import yes
from redisd.test_move import frozen, writing

from flotilla.aws.session import client
from flotilla.backup import operate as edge
from flotilla.backup.bucket import Bucket
from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.redis import operate, operate_backup
from flotilla.rules.redis_backup import chunk_key, manifest_key
from flotilla.settings import Settings
from flotilla.wait import until

pytestmark = pytest.mark.timeout(480)
RING = "a-key-of-backups-that-is-long-enough"
KEYS = 3000


@pytest.fixture
def bucket(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The fleet's bucket of backups and the key, for operators and hosts alike."""
    region = {"LocationConstraint": settings.region}
    name = settings.name_of("backups")
    client(settings, "s3").create_bucket(Bucket=name, CreateBucketConfiguration=region)
    key(settings, RING)
    monkeypatch.setenv("AWS_REGION", settings.region)
    monkeypatch.setenv("AWS_DEFAULT_REGION", settings.region)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", _metadata("i-redis"))
    return edge.bucket(settings)


def key(settings: Settings, ring: str) -> None:
    name = settings.parameter("redis", "backup_keys")
    client(settings, "ssm").put_parameter(
        Name=name, Value=ring, Type="SecureString", Overwrite=True
    )


def filled(group: Group) -> dict[str, str]:
    """Keys of every sort, on all hosts; what they are, by name."""
    there = group.app(group.primary(), decode_responses=True)
    with there.pipeline() as pipe:
        for number in range(KEYS):
            pipe.set(f"key:{number}", f"value {number}")
        pipe.rpush("list", *range(100))
        pipe.hset("hash", mapping={str(n): n for n in range(100)})
        pipe.setex("session", 3600, "somebody")
        pipe.execute()
    there.wait(2, 5000)
    return contents(group, group.primary())


def contents(group: Group, name: str) -> dict[str, str]:
    """What a host has, key by key, whatever sort it is; the writer's own list left out."""
    found = group.app(name, decode_responses=True)
    return {one: found.dump(one) for one in raw(name).scan_iter(count=1000) if one != b"ledger"}


def raw(name: str) -> Any:
    return redis_node.redis_tls.client(
        redis_node.AUTHORITY, host=HOSTS[name], port=PORT, username="app", password="app"
    )


def backup(settings: Settings) -> dict[str, Any]:
    return operate_backup.backup(settings, confirmed=yes, said=yes)


def restore(settings: Settings, which: str = "latest", confirmed: Any = yes) -> dict[str, Any]:
    return operate_backup.restore(settings, which, confirmed=confirmed, said=yes)


def spoilt(group: Group) -> None:
    """What somebody did by mistake, on every host."""
    there = redis_node.redis_tls.client(
        redis_node.AUTHORITY, host=HOSTS[group.primary()], port=PORT, username="app", password="app"
    )
    keys = list(there.scan_iter("key:*"))
    there.delete(*keys)
    there.set("mistake", "made")
    there.wait(2, 5000)


def serves(group: Group, wanted: dict[str, str]) -> None:
    """Every host has exactly this, and the Sentinels wait as they did."""
    until(group.is_whole, seconds=60)
    for name in HOSTS:
        assert (name, contents(group, name)) == (name, wanted)
        seen = group.sentinel(name).execute_command("SENTINEL", "MASTER", CLUSTER)
        assert redis_node.redis_move.pairs(seen)["down-after-milliseconds"] == "3000"


def kept(hands: Hands, name: str) -> list[Path]:
    return sorted(hands.home(name).glob("data.before-*"))


def kill(hands: Hands) -> None:
    """The host's tool, at once and without a word."""
    os.kill(hands.caller, 9)


def test_a_backup_under_writes_brings_the_same_keys_back_to_every_host(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket
) -> None:
    wanted = filled(group)
    with writing(group) as writer:
        done = backup(settings)
        spoilt(group)
        plans: list[str] = []
        told = restore(settings, done["backup"], plans.append)
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=20)
    assert done["host"] in {"redis-2", "redis-3"}
    assert f"{done['keys']} keys" in plans[0]
    assert "redis-1 has 5 keys now" in plans[0]
    assert (told["host"], told["keys"], told["replaced_keys"]) == ("redis-1", done["keys"], 5)
    assert writer.most_offered == 1
    serves(group, wanted)
    (before,) = kept(hands, "redis-1")
    assert (str(before), (before / "appendonlydir").is_dir()) == (told["before"], True)
    assert not (hands.home("redis-1") / "data.new").exists()
    assert not any((hands.home(name) / "backup" / "dump.rdb").exists() for name in HOSTS)
    # And it is on the disk: what a start reads.
    hands.run("redis-1", "systemctl stop redis-server")
    hands.run("redis-1", "systemctl start redis-server")
    until(group.is_whole, seconds=60)
    assert contents(group, group.primary()) == wanted


def test_a_redis_that_forks_for_seconds_is_waited_for(
    group: Group, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork of much data takes so long, and no command is answered meanwhile."""
    home = hands.home("redis-2")
    monkeypatch.setattr(redis_node, "HOME", home)
    monkeypatch.setattr(redis_node, "DATA", home / "data")
    monkeypatch.setenv("PATH", f"{hands.root('redis-2')}/bin:{os.environ['PATH']}")
    frozen(group.servers["redis-2"], 2.0)
    assert redis_node.save(group.settings("redis-2")) == 0
    assert (home / "backup" / "dump.rdb").exists()


def test_a_snapshot_that_failed_is_no_backup_whatever_lies_there(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket
) -> None:
    """As when memory runs out: Redis counts snapshots that began, and an old file looks whole."""
    filled(group)
    home = hands.home("redis-2")
    there = redis_node.at_work(group.settings("redis-2"))
    there.execute_command("BGSAVE")
    until(lambda: not there.info("persistence")["rdb_bgsave_in_progress"], seconds=20)
    assert (home / "data" / "dump.rdb").exists()
    there.execute_command("CONFIG", "SET", "rdb-key-save-delay", "20000")
    told: list[Any] = []
    line = f"{operate.TOOL} save"
    saving = threading.Thread(target=lambda: told.append(hands.run("redis-2", line, check=False)))
    saving.start()
    until(lambda: there.info("persistence")["rdb_bgsave_in_progress"], seconds=20, every=0.02)
    server = there.info("server")["process_id"]
    (child,) = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    saving.join()
    assert told[0].rc != 0
    assert "could not save" in told[0].stdout + told[0].stderr
    assert not (home / "backup" / "dump.rdb").exists()


def test_one_restore_at_a_time(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket
) -> None:
    """Whose operator was killed works on; another one would exchange what it works with."""
    wanted = filled(group)
    backup(settings)
    spoilt(group)
    handle = os.open(hands.home("redis-1"), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for line in (f"{operate_backup.BACKUP_TOOL} fetch --backup latest", f"{operate.TOOL} restore"):
        more = " --backup 20261120T030000Z-1a2b3c4d" if "restore" in line else ""
        told = hands.run("redis-1", line + more, check=False)
        assert (told.rc, "another restore is at work" in told.stderr) == (3, True)
    with pytest.raises(Refused, match="another restore is at work"):
        restore(settings)
    os.close(handle)
    restore(settings)
    serves(group, wanted)


def test_the_scheduled_backup_is_taken_once_by_a_replica_and_by_another_when_that_is_away(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket
) -> None:
    filled(group)

    def scheduled(name: str) -> dict[str, Any]:
        line = f"{operate_backup.BACKUP_TOOL} run --if-due"
        return json.loads(hands.run(name, line).stdout)

    assert scheduled("redis-1") == {
        "made": False,
        "why": "this host is the primary; a replica does it",
    }
    group.servers["redis-2"].end()
    told = hands.run("redis-2", f"{operate_backup.BACKUP_TOOL} run --if-due", check=False)
    assert told.rc == 3
    first = scheduled("redis-3")
    assert (first["made"], first["keys"]) == (True, KEYS + 3)
    assert scheduled("redis-3")["why"] == f"the newest backup is {first['backup']}"
    (found,) = operate_backup.listed(settings)["backups"]
    assert (found["id"], found["host"], found["keys"]) == (first["backup"], "redis-3", KEYS + 3)


def test_what_is_damaged_or_sealed_with_another_key_touches_nothing(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket
) -> None:
    filled(group)
    made = backup(settings)["backup"]
    spoilt(group)
    now = contents(group, "redis-1")
    with pytest.raises(BadOption, match="is no backup"):
        restore(settings, "yesterday")
    with pytest.raises(Refused, match="there is no backup 20260101T000000Z-00000000"):
        restore(settings, "20260101T000000Z-00000000")
    key(settings, "another-key-that-is-long-enough-too")
    with pytest.raises(Refused, match="not written with a key of the ring"):
        restore(settings)
    key(settings, RING)
    name = chunk_key(made, 0)
    sealed = bytearray(bucket.read(name))
    sealed[len(sealed) // 2] ^= 1
    bucket.remove([name])
    with pytest.raises(Refused, match=f"{name}: there is no such object"):
        restore(settings)
    assert bucket.add(name, bytes(sealed))
    with pytest.raises(Refused, match=f"{name}: its checksum"):
        restore(settings)
    assert contents(group, "redis-1") == now
    assert not any(": stop" in line for line in hands.did)
    assert not (hands.home("redis-1") / "data.new").exists()
    text = bucket.read(manifest_key(made))
    bucket.remove([manifest_key(made)])
    assert bucket.add(manifest_key(made), text.replace(b'"keys": ', b'"keys": 1'))
    other = backup(settings)["backup"]
    told = operate_backup.listed(settings)
    assert [one["id"] for one in told["backups"]] == [other], "a damaged one hides no other"
    assert [one["id"] for one in told["damaged"]] == [made]
    assert kept(hands, "redis-1") == []


def test_what_redis_cannot_load_is_called_off_and_the_old_data_is_served(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket
) -> None:
    filled(group)
    backup(settings)
    spoilt(group)
    now = contents(group, "redis-1")
    # What was fetched is changed on the disk: before the look at it, then after.
    base = hands.home("redis-1") / "data.new/appendonlydir/appendonly.aof.1.base.rdb"

    def cut() -> str | None:
        os.truncate(hands.home("redis-1") / "data/appendonlydir" / base.name, 100)
        return None

    hands.on["redis-1: start"] = cut
    with pytest.raises(Refused, match="the old data is served again"):
        restore(settings)
    serves(group, now)
    assert kept(hands, "redis-1") == []
    line = f"{operate_backup.BACKUP_TOOL} fetch --backup latest"
    made = json.loads(hands.run("redis-1", line).stdout)["backup"]
    os.truncate(base, 100)
    told = hands.run("redis-1", f"{operate.TOOL} restore --backup {made}", check=False)
    assert (told.rc, "is no whole snapshot" in told.stderr) == (3, True)
    assert contents(group, "redis-1") == now


@pytest.mark.parametrize("moment", ["stop", "start", "between"])
def test_a_restore_that_was_killed_is_ended_by_the_same_command(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket, moment: str
) -> None:
    wanted = filled(group)
    made = backup(settings)["backup"]
    spoilt(group)
    home = hands.home("redis-1")

    def cut_off() -> str | None:
        kill(hands)
        if moment == "between":
            (home / "data").rename(home / "data.new")
        # Who is dead does not get Redis started; stopped it is by its own hand.
        return None if moment == "stop" else "nobody asks"

    hands.on[f"redis-1: {'stop' if moment == 'stop' else 'start'}"] = cut_off
    with pytest.raises(HostFailed, match="the same command again"):
        restore(settings, made)
    # The tool is dead before Redis is, which is told to stop and does.
    until(lambda: not group.servers["redis-1"].is_running, seconds=30)
    told = restore(settings, made)
    assert (told["host"], told["keys"]) == (group.primary(), KEYS + 3)
    serves(group, wanted)


def test_a_primary_that_dies_in_the_middle_is_replaced_and_the_old_data_is_served(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(group)
    made = backup(settings)["backup"]
    spoilt(group)
    now = contents(group, "redis-1")
    # Two minutes are the role's; a test has less.
    node = hands.home("redis-1") / "node.py"
    text = node.read_text().replace("home = ", "node.redis_restore.HOLD_MS = 8000\nhome = ", 1)
    node.write_text(text)
    hands.on["redis-1: start"] = lambda: kill(hands) or "nobody asks"
    with pytest.raises(HostFailed):
        restore(settings, made)
    until(lambda: group.offered() in (["redis-2"], ["redis-3"]), seconds=60)
    assert contents(group, group.primary()) == now
    hands.run("redis-1", "systemctl start redis-server")
    until(group.is_whole, seconds=60)
    for name in HOSTS:
        assert contents(group, name) == now
    told = restore(settings, made)
    assert told["host"] == group.primary() != "redis-1"


def test_a_group_that_was_lost_whole_comes_back_empty_and_gets_its_data_from_the_backup(
    group: Group, hands: Hands, settings: Settings, bucket: Bucket
) -> None:
    wanted = filled(group)
    backup(settings)
    for name in HOSTS:
        lose(group, hands, name)
        shutil.rmtree(hands.home(name) / "backup", ignore_errors=True)
    for name in HOSTS:
        until(lambda n=name: starts(hands, n, "redis-server"), seconds=60)
    for name in HOSTS:
        until(lambda n=name: starts(hands, n, "redis-sentinel"), seconds=60)
    until(group.is_whole, seconds=60)
    assert contents(group, "redis-1") == {}
    told = restore(settings)
    assert (told["keys"], told["replaced_keys"]) == (KEYS + 3, 0)
    serves(group, wanted)

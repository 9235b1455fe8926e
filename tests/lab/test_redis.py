"""The Redis of the standing fleet: its role is moved while clients are served."""

from __future__ import annotations

import time

import pytest
from guests import needs_lab, until
from typed import KILL, fab, interfered, typed

from flotilla import inventory
from flotilla.aws import edge
from flotilla.drill.redis_clients import Clients
from flotilla.errors import Refused
from flotilla.hosts.ssh import Runner, prepare
from flotilla.lock import demand_free
from flotilla.redis.ledger import access
from flotilla.redis.operate import LOCK, MOVERS
from flotilla.rules.ledger import Fate
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


def test_every_host_is_restarted_the_primary_last_while_clients_are_served(
    standing_fleet: Settings,
) -> None:
    old = fab("redis.status")["primary"]
    before = {member["name"]: member for member in fab("redis.status")["members"]}
    start = time.monotonic()
    with Background("--url", edge.url(standing_fleet), "--rate", "40") as traffic:
        done = fab("redis.patch", "--restart", "--yes")
        time.sleep(3)
        seen = traffic.stop()
    assert sorted(done["hosts"]) == sorted(before)
    assert [move["old"] for move in done["moves"]] == [old]
    assert (seen["served"] > 0, seen["failed"]) == (True, 0)
    now = fab("redis.status")
    assert (now["primary"], now["problems"]) == (done["moves"][0]["new"], [])
    took = time.monotonic() - start
    assert all(member["uptime_seconds"] <= took + 1 for member in now["members"])
    assert fab("redis.patch", "--yes")["changed"] is False, "nothing is newer than what runs"
    fab("redis.switchover", "--to", old, "--yes")


def test_a_unit_that_is_newer_than_its_service_restarts_that_service_only(
    standing_fleet: Settings,
) -> None:
    found = fab("redis.status")
    replica = next(m["name"] for m in found["members"] if m["name"] != found["primary"])
    unit = "/etc/systemd/system/redis-sentinel.service.d/flotilla.conf"
    fab("fleet.run", f"sudo touch {unit}", "--on", replica)
    done = fab("redis.patch", "--yes")
    assert done["hosts"] == {replica: [f"{unit} changed after redis-sentinel was started"]}
    assert done["moves"] == []
    now = fab("redis.status")
    assert (now["primary"], now["problems"]) == (found["primary"], [])


def test_with_a_sentinel_away_no_host_is_taken_away(standing_fleet: Settings) -> None:
    found = fab("redis.status")
    replica = next(m["name"] for m in found["members"] if m["name"] != found["primary"])
    fab("fleet.run", "sudo systemctl stop redis-sentinel", "--on", replica)
    try:
        refused = fab("redis.patch", "--restart", "--yes", code=3)["error"]
    finally:
        fab("fleet.run", "sudo systemctl start redis-sentinel", "--on", replica)
    assert replica in refused["what"]
    assert refused["untouched"] == "Nothing was changed"


def test_a_replica_whose_file_is_broken_is_made_a_copy_again(standing_fleet: Settings) -> None:
    found = fab("redis.status")
    replica = next(m["name"] for m in found["members"] if m["name"] != found["primary"])
    broken = "sudo find /var/lib/redis/data/appendonlydir -name '*.aof' -o -name '*.rdb'"
    spoil = f"sudo systemctl kill -s KILL redis-server; {broken} | sudo xargs truncate -s 5"
    fab("fleet.run", spoil, "--on", replica)
    with Background("--url", edge.url(standing_fleet), "--rate", "40") as traffic:
        done = fab("redis.rebuild", replica, "--yes")
        seen = traffic.stop()
    assert (done["host"], done["primary"]) == (replica, found["primary"])
    assert (seen["served"] > 0, seen["failed"]) == (True, 0)
    now = fab("redis.status")
    assert (now["primary"], now["problems"]) == (found["primary"], [])
    left = fab("fleet.run", "sudo ls /var/lib/redis", "--on", replica)
    assert "data.before" not in str(left)


def test_the_primary_s_data_is_not_thrown_away(standing_fleet: Settings) -> None:
    primary = fab("redis.status")["primary"]
    refused = fab("redis.rebuild", primary, "--yes", code=3)["error"]
    assert f"{primary} is the primary" in refused["what"]
    assert refused["untouched"] == "Nothing was changed"


# Another type for the Redis hosts in the fleet.yml that one run reads.
LARGER = {"tiers.redis.type": "t3.medium"}


def resized(moment: str, command: str, *, delay: float | None = None, code: int = 0) -> None:
    """`fab redis.resize` to LARGER, with ``command`` at a moment that comes if it is to end so."""
    with interfered(moment, command, "redis.resize", "--yes", delay=delay, settings=LARGER) as run:
        returned, told, said = run.ends()
    assert returned == code, f"exit {returned}, not {code}\n{told}\n{said}"


def is_free(settings: Settings) -> bool:
    """Whether the killed run's locks have freed themselves."""
    try:
        demand_free(settings, MOVERS)
        demand_free(settings, LOCK)
    except Refused:
        return False
    return True


def types(settings: Settings) -> set[str]:
    return {host.type for host in inventory.load(settings, refresh=True).by_role("redis")}


@pytest.mark.drill
@pytest.mark.timeout(1200)
def test_every_host_gets_another_type_though_two_runs_are_killed_and_no_write_is_lost(
    standing_fleet: Settings,
) -> None:
    """The first one while a host is stopped, the second while its work on the next is ending."""
    before = fab("redis.status")
    keys = max(member["keys"] for member in before["members"])
    snapshot = inventory.load(standing_fleet, refresh=True)
    hosts = snapshot.by_role("redis")
    prepare(standing_fleet, snapshot)
    with Runner(standing_fleet, snapshot) as runner:
        clients = Clients(
            access(standing_fleet),
            runner,
            apps=snapshot.by_role("app"),
            addresses={host.name: host.private_ip or "" for host in hosts},
            writers=2,
            wait_replicas=0,
        )
        with (
            clients,
            Background("--url", edge.url(standing_fleet), "--rate", "20") as traffic,
        ):
            work = r"after write step +work on redis-\d"
            resized(work, KILL, delay=1.0, code=-9)
            until(lambda: is_free(standing_fleet), 90, "the killed run's locks are free")
            resized(r"after write done +work on redis-\d", KILL, code=-9)
            until(lambda: is_free(standing_fleet), 90, "the killed run's locks are free")
            resized("no such moment", "false")
            assert types(standing_fleet) == {"t3.medium"}
            # As fleet.yml says: back again.
            fab("redis.resize", "--yes")
            seen = traffic.stop()
            entries, _, missing = clients.fetch()
        now = fab("redis.status")
        there = clients.rows(now["primary"])
    assert missing == {}
    acked = {e.id for some in entries.values() for e in some if e.fate is Fate.ACKED}
    assert acked
    assert acked <= set(there)
    assert (seen["served"] > 0, seen["failed"]) == (True, 0)
    assert types(standing_fleet) == {standing_fleet.tiers.redis.type}
    assert now["problems"] == []
    assert min(member["keys"] for member in now["members"]) >= keys, "no session is gone"
    assert fab("redis.resize", "--yes")["changed"] is False


def test_a_type_that_fleet_yml_does_not_name_is_refused_and_nothing_is_touched(
    standing_fleet: Settings,
) -> None:
    before = fab("redis.status")
    refused = fab("redis.resize", "--type", "t3.large", "--yes", code=3)["error"]
    assert "fleet.tiers.redis.type" in refused["next"]
    unknown = fab("redis.resize", "--type", "t3.enormous", "--yes", code=5)["error"]
    assert unknown["untouched"] == "Nothing was changed"
    after = fab("redis.status")
    assert after["primary"] == before["primary"]

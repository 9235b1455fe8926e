"""What the board says of the Redis hosts, from the reports redis_node.py writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.hosts.redis import member
from flotilla.hosts.ssh import Runner
from flotilla.redis.status import status
from flotilla.rules.redis import (
    Forced,
    Lasts,
    Member,
    Next,
    certificates,
    following,
    forced,
    fullness,
    issuers,
    primary,
    problems,
)
from flotilla.snapshot import Host

ADDRESSES = {f"redis-{n}": f"10.77.5.{n}" for n in (1, 2, 3)}
AGREED = dict.fromkeys(ADDRESSES, "10.77.5.1")


def host(name: str) -> Host:
    return Host(
        name=name,
        instance_id=f"i-{name}",
        role="redis",
        number=int(name[-1]),
        zone="eu-central-1a",
        state="running",
        private_ip=ADDRESSES[name],
        public_ip=None,
        image_id="ami-1",
        type="t3.small",
        launched_at=datetime(2026, 1, 1, tzinfo=UTC),
        tags={},
        asg=None,
    )


def report(name: str, **overrides: object) -> dict[str, Any]:
    is_primary = overrides.get("role", "master" if name == "redis-1" else "slave") == "master"
    return {
        "name": name,
        "address": ADDRESSES[name],
        "error": None,
        "role": "master" if is_primary else "slave",
        "master_link_status": None if is_primary else "up",
        "master_host": None if is_primary else "10.77.5.1",
        "connected_slaves": 2 if is_primary else 0,
        "master_repl_offset": 1270,
        "slave_repl_offset": None if is_primary else 1270,
        "min_slaves_good_slaves": 2 if is_primary else 0,
        "used_memory": 979896,
        "maxmemory": 67108864,
        "loading": 0,
        "aof_enabled": 1,
        "aof_last_write_status": "ok",
        "aof_last_bgrewrite_status": "ok",
        "connected_clients": 8,
        "redis_version": "8.0.2",
        "uptime_in_seconds": 9,
        "sentinels": AGREED,
        "quorum_error": None,
    } | overrides


def group(**overrides: dict[str, object]) -> list[Member]:
    """Three members; keyword redis_2={...} changes what redis-2 reports."""
    return [
        member(host(name), report(name, **overrides.get(name.replace("-", "_"), {})))
        for name in ADDRESSES
    ]


def test_a_healthy_group_has_one_primary_and_no_problem() -> None:
    members = group()
    chosen = primary(members)
    assert chosen
    assert chosen.name == "redis-1"
    assert problems(members, {}) == []


def test_an_old_primary_that_has_not_noticed_is_named_and_not_chosen() -> None:
    moved = dict.fromkeys(ADDRESSES, "10.77.5.2")
    alone = {"redis-1": "10.77.5.1", "redis-2": None, "redis-3": None}
    members = group(
        redis_1={"sentinels": alone},
        redis_2={"role": "master", "sentinels": moved},
        redis_3={"sentinels": moved, "master_host": "10.77.5.2"},
    )
    chosen = primary(members)
    assert chosen
    assert chosen.name == "redis-2"
    assert problems(members, {}) == [
        "redis-1 also says it is the primary; clients are not sent there"
    ]


def test_without_a_majority_there_is_no_primary() -> None:
    alone = {"redis-1": "10.77.5.1", "redis-2": None, "redis-3": None}
    members = group(redis_1={"sentinels": alone})[:1]
    assert primary(members) is None
    silent = {"redis-2": "no answer", "redis-3": "no answer"}
    assert problems(members, silent)[0] == (
        "no host is the primary: redis-1 says so without a majority"
    )


@pytest.mark.parametrize(
    ("reported", "sentence"),
    [
        ({"redis_2": {"master_link_status": "down"}}, "redis-2: its link to redis-1 is down"),
        (
            {"redis_3": {"master_host": "10.77.5.2"}},
            "redis-3: follows 10.77.5.2, not redis-1 (10.77.5.1)",
        ),
        (
            {"redis_2": {"slave_priority": 0}},
            (
                "redis-2: Sentinel does not make it the primary, for its rebuild goes on or was"
                " cut off: fab redis.rebuild redis-2"
            ),
        ),
        (
            {"redis_1": {"min_slaves_good_slaves": 0}},
            "redis-1: no replica keeps up, so it refuses writes",
        ),
        (
            {"redis_2": {"aof_last_write_status": "err"}},
            "redis-2: its append-only file is not being written",
        ),
        (
            {"redis_3": {"quorum_error": "NOQUORUM 1 usable Sentinels"}},
            "redis-3: its Sentinel could not agree on a failover (NOQUORUM 1 usable Sentinels)",
        ),
        (
            {"redis_1": {"sentinels": AGREED | {"redis-3": None}}},
            "redis-3: its Sentinel does not answer",
        ),
        (
            {"redis_1": {"sentinels": AGREED | {"redis-2": "10.77.5.2"}}},
            "redis-2: its Sentinel names 10.77.5.2",
        ),
    ],
)
def test_one_thing_wrong_is_one_sentence(
    reported: dict[str, dict[str, object]], sentence: str
) -> None:
    assert problems(group(**reported), {}) == [sentence]


def test_nearly_full_memory_is_told_and_keeps_nobody_from_working_on_the_hosts() -> None:
    members = group(redis_1={"used_memory": 64000000})
    assert fullness(members) == [
        "redis-1: 95 % of its memory is in use; when it is full, writes are refused"
    ]
    assert problems(members, {}) == []
    assert fullness(group()) == []


def test_a_host_whose_redis_is_down_is_told_from_one_that_cannot_be_reached() -> None:
    down = {
        "role": None,
        "error": "Connection refused",
        "master_host": None,
        "sentinels": AGREED,
        "aof_enabled": None,
        "quorum_error": None,
        "address": "10.77.5.2",
    }
    members = [group()[0], member(host("redis-2"), down)]
    assert problems(members, {"redis-3": "no answer while connecting (timed out)"}) == [
        "redis-3: no answer while connecting (timed out)",
        "redis-2: Redis does not answer (Connection refused)",
    ]


def test_of_hosts_that_cannot_be_asked_nothing_is_claimed() -> None:
    assert problems([], dict.fromkeys(ADDRESSES, "no answer")) == [
        f"{name}: no answer" for name in ADDRESSES
    ]


def test_a_report_without_its_fields_is_not_taken_for_a_host() -> None:
    with pytest.raises(KeyError):
        member(host("redis-1"), {"role": "master"})


# --- a planned move -------------------------------------------------------------------------------


def test_the_replica_that_lacks_least_is_next_unless_another_one_is_named():
    behind = group(redis_2={"slave_repl_offset": 1000})
    assert following(behind, {}, None) == Next("redis-1", "redis-3")
    assert following(behind, {}, "redis-2") == Next("redis-1", "redis-2")
    assert following(behind, {}, "redis-1") == Next("redis-1", "redis-1")


@pytest.mark.parametrize(
    ("overrides", "silent", "says"),
    [
        ({"redis_2": {"master_link_status": "down"}}, {}, "its link to redis-1 is down"),
        ({}, {"redis-3": "no answer"}, "redis-3: no answer"),
        ({"redis_1": {"role": "slave", "master_host": "10.77.5.9"}}, {}, "no host is the primary"),
        ({"redis_3": {"quorum_error": "NOQUORUM"}}, {}, "could not agree"),
    ],
)
def test_with_anything_out_of_order_nobody_is_moved(overrides, silent, says):
    found = following(group(**overrides), silent, None)
    assert isinstance(found, str)
    assert says in found


def test_a_primary_without_anybody_else_stays():
    alone = [member(host("redis-1"), report("redis-1", sentinels={"redis-1": "10.77.5.1"}))]
    assert "no replica" in str(following(alone, {}, None))


def lasting(left: float | None = 100.0, issuer: float | None = 400.0) -> dict[str, object]:
    return {"hours_left": left, "hours": 169.0, "issuer_days_left": issuer}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, ""),
        (lasting(), ""),
        (lasting(left=48.0), ""),
        (lasting(left=47.0), "redis-2: its certificate ends in 47 h and was not renewed"),
        (lasting(left=-1.0), "redis-2: its certificate has ended: clients refuse it"),
        (lasting(left=None, issuer=None), ""),
        (lasting(issuer=89.0), "ends in 89 days: fab fleet.provision, then fab fleet.configure"),
    ],
)
def test_a_certificate_that_was_not_renewed_in_time_is_told_and_keeps_nobody_from_work(
    found: dict[str, object] | None, said: str
) -> None:
    members = group(redis_2={"certificate": found})
    told = certificates(members) + issuers(members)
    assert told == [] if not said else said in told[0]
    assert problems(members, {}) == []
    assert members[1].certificate == (Lasts(**found) if found else None)  # type: ignore[arg-type]


def without(name: str) -> tuple[list[Member], dict[str, str]]:
    return [one for one in group() if one.name != name], {name: "no answer"}


def test_a_forced_failover_needs_no_word_of_the_primary() -> None:
    members, silent = without("redis-1")
    wanted = Forced("redis-1", ("redis-2", "redis-3"), "redis-3")
    assert forced(members, silent, ADDRESSES) == wanted
    assert forced(group(), {}, ADDRESSES) == wanted


def test_who_lacks_least_is_told() -> None:
    found = forced(group(redis_2={"slave_repl_offset": 1271}), {}, ADDRESSES)
    assert found == Forced("redis-1", ("redis-2", "redis-3"), "redis-2")


@pytest.mark.parametrize(
    "overrides",
    [
        {"slave_priority": 0},
        {"master_sync_in_progress": 1},
        {"master_host": "10.77.5.9"},
        {"role": None},
    ],
)
def test_who_has_no_whole_copy_is_no_heir(overrides: dict[str, object]) -> None:
    found = forced(group(redis_3=overrides), {}, ADDRESSES)
    assert isinstance(found, Forced)
    assert found.heirs == ("redis-2",)
    nobody = forced(group(redis_2=overrides, redis_3=overrides), {}, ADDRESSES)
    assert isinstance(nobody, str)
    assert "no replica of redis-1" in nobody


def test_without_a_majority_of_sentinels_nothing_is_forced() -> None:
    members = [one for one in group() if one.name == "redis-2"]
    silent = {"redis-1": "no answer", "redis-3": "no answer"}
    found = forced(members, silent, ADDRESSES)
    assert isinstance(found, str)
    assert "silent: redis-1, redis-3" in found


@given(
    gone=st.sets(st.sampled_from(sorted(ADDRESSES))),
    says=st.fixed_dictionaries(
        dict.fromkeys(ADDRESSES, st.sampled_from([*ADDRESSES.values(), None]))
    ),
)
def test_what_is_forced_is_away_from_whom_a_majority_names_to_somebody_else(
    gone: set[str], says: dict[str, str | None]
) -> None:
    reports = {f"redis_{name[-1]}": {"sentinels": says} for name in ADDRESSES}
    members = [one for one in group(**reports) if one.name not in gone]
    found = forced(members, dict.fromkeys(gone, "no answer"), ADDRESSES)
    if isinstance(found, str):
        return
    votes = [says[one.name] for one in members].count(ADDRESSES[found.old])
    assert votes >= 2
    assert found.old not in found.heirs
    assert found.teller in found.heirs
    assert not gone & set(found.heirs)


def test_a_host_that_does_not_run_is_a_problem() -> None:
    stopped = replace(host("redis-2"), state="stopped")
    gone = replace(host("redis-3"), state="terminated")
    nobody_is_asked = cast("Runner", None)
    found = status(nobody_is_asked, [], stopped=[stopped, gone])
    assert found["problems"] == ["redis-2: its host is stopped"]
    assert [(one["name"], one["role"]) for one in found["members"]] == [("redis-2", "silent")]
    assert status(nobody_is_asked, [])["problems"] == ["the fleet has no Redis host"]

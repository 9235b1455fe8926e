"""Who may be the Redis primary, over every combination of what the Sentinels say."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).resolve().parents[2] / "roles/redis/files/redis_rules.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("redis_rules", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["redis_rules"] = module
    spec.loader.exec_module(module)
    return module


rules = _script()
ONE, TWO, THREE = "10.77.5.1", "10.77.5.2", "10.77.5.3"
NOBODY, SILENT = rules.Word(), rules.Word(silent=True)


def says(*addresses: object) -> dict[str, object]:
    """Words of redis-1, redis-2, ...: an address, NOBODY or SILENT."""
    return {
        f"redis-{n}": rules.Word(names=a) if isinstance(a, str) else a
        for n, a in enumerate(addresses, start=1)
    }


words = st.fixed_dictionaries(
    {
        f"redis-{n}": st.sampled_from(
            [rules.Word(names=ONE), rules.Word(names=TWO), rules.Word(names=THREE), NOBODY, SILENT]
        )
        for n in (1, 2, 3)
    }
)


def test_in_a_new_fleet_the_first_host_is_primary_and_the_others_follow_it() -> None:
    none = says(NOBODY, NOBODY, NOBODY)
    assert rules.start(none, me=ONE, initial=ONE, empty=True).role == "primary"
    second = rules.start(none, me=TWO, initial=ONE, empty=True)
    assert (second.role, second.primary) == ("replica", ONE)


def test_the_first_host_rebuilt_after_a_failover_follows_the_new_primary() -> None:
    words = says(NOBODY, TWO, TWO)
    found = rules.start(words, me=ONE, initial=ONE, empty=True, serving={TWO})
    assert (found.role, found.primary) == ("replica", TWO)


@pytest.mark.parametrize("words", [says(NOBODY, ONE, ONE), says(NOBODY, NOBODY, ONE)])
def test_an_empty_host_is_nobody_to_choose_from_while_the_primary_is_away(
    words: dict[str, object],
) -> None:
    """Of two hosts that were lost, it came first; the third has all data, and was not chosen yet.

    Sentinel takes whom it heard of within a second, and a busy host may miss that.
    """
    found = rules.start(words, me=TWO, initial=ONE, empty=True)
    assert found.role == "wait"
    assert f"{ONE}, and that host is no primary now" in found.reason
    assert rules.start(words, me=TWO, initial=ONE, empty=True, serving={ONE}).role == "replica"


def test_an_old_primary_comes_back_as_a_replica() -> None:
    found = rules.start(says(ONE, TWO, TWO), me=ONE, initial=ONE, empty=False)
    assert (found.role, found.primary) == ("replica", TWO)


def test_a_primary_that_restarts_before_anybody_noticed_stays_primary() -> None:
    found = rules.start(says(NOBODY, ONE, ONE), me=ONE, initial=ONE, empty=False)
    assert found.role == "primary"


def test_a_wiped_primary_waits_until_somebody_else_has_taken_over() -> None:
    found = rules.start(says(NOBODY, ONE, ONE), me=ONE, initial=ONE, empty=True)
    assert found.role == "wait"
    assert "its data is gone" in found.reason


def test_a_new_host_does_not_make_itself_primary_behind_a_firewall() -> None:
    found = rules.start(says(NOBODY, SILENT, SILENT), me=ONE, initial=ONE, empty=True)
    assert found.role == "wait"
    assert "redis-2, redis-3" in found.reason


def test_without_a_majority_a_host_with_data_keeps_its_last_role() -> None:
    found = rules.start(says(NOBODY, SILENT, ONE), me=ONE, initial=ONE, empty=False)
    assert found.role == "keep"


@given(
    words=words,
    me=st.sampled_from([ONE, TWO, THREE]),
    empty=st.booleans(),
    serving=st.sets(st.sampled_from([ONE, TWO, THREE])),
)
def test_a_host_without_data_is_primary_only_where_nobody_ever_was(
    words: dict[str, object], me: str, empty: bool, serving: set[str]
) -> None:
    found = rules.start(words, me=me, initial=ONE, empty=empty, serving=serving)
    if found.role == "replica" and empty:
        assert found.primary in serving or not any(word.names for word in words.values())
    if found.role == "primary" and empty:
        assert me == ONE
        assert set(words.values()) == {NOBODY}
    assert found.primary != me or found.role == "primary"
    assert found.reason


@given(words=words)
def test_at_most_one_of_three_hosts_that_all_claim_the_role_is_offered(
    words: dict[str, object],
) -> None:
    offered = [me for me in (ONE, TWO, THREE) if rules.offered("master", words, me=me)[0]]
    assert len(offered) <= 1


@given(words=words, role=st.sampled_from(["slave", "sentinel", ""]))
def test_a_replica_is_never_offered_whatever_the_sentinels_say(
    words: dict[str, object], role: str
) -> None:
    assert not any(rules.offered(role, words, me=me)[0] for me in (ONE, TWO, THREE))


@pytest.mark.parametrize(
    ("said", "primary", "reason"),
    [
        (says(ONE, ONE, ONE), True, "3 of 3 Sentinels name this host"),
        (says(ONE, SILENT, ONE), True, "2 of 3 Sentinels name this host (no word from redis-2)"),
        (says(ONE, SILENT, TWO), False, "only 1 of 3 Sentinels name this host"),
    ],
)
def test_the_reason_says_who_was_heard(said: dict[str, object], primary: bool, reason: str) -> None:
    found = rules.offered("master", said, me=ONE)
    assert found[0] is primary
    assert reason in found[1]


def test_a_new_sentinel_does_not_remember_a_primary_that_never_was() -> None:
    none = says(NOBODY, NOBODY, NOBODY)
    assert rules.monitored(none, initial=ONE, initial_role="").role == "wait"
    found = rules.monitored(none, initial=ONE, initial_role="master")
    assert (found.role, found.primary) == ("replica", ONE)


def test_a_new_sentinel_joins_the_others_even_while_the_primary_is_down() -> None:
    found = rules.monitored(says(NOBODY, TWO, TWO), initial=ONE, initial_role="")
    assert (found.role, found.primary) == ("replica", TWO)


@given(words=words)
def test_a_new_sentinel_never_goes_against_a_majority(words: dict[str, object]) -> None:
    named = rules.named_by_majority(words)
    found = rules.monitored(words, initial=ONE, initial_role="master")
    if named:
        assert found.primary == named


@pytest.mark.parametrize(("hosts", "least"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_majority_is_more_than_half(hosts: int, least: int) -> None:
    assert rules.majority(hosts) == least


# --- a planned move -------------------------------------------------------------------------------

NEAR = rules.Candidate("redis-2", "10.0.0.2", follows=True, behind=10)
FAR = rules.Candidate("redis-3", "10.0.0.3", follows=True, behind=500)


def test_the_nearest_replica_is_next_unless_another_one_is_asked_for():
    assert rules.candidate([FAR, NEAR], None) == NEAR
    assert rules.candidate([FAR, NEAR], "redis-3") == FAR


@pytest.mark.parametrize(
    ("found", "to", "says"),
    [
        ([], None, "no replica"),
        ([NEAR], "redis-7", "redis-7 is no replica"),
        ([dataclasses.replace(NEAR, follows=False)], None, "link"),
        ([dataclasses.replace(NEAR, behind=1 << 30)], "redis-2", "behind"),
    ],
)
def test_who_cannot_be_next_is_named_with_the_reason(found, to, says):
    assert says in rules.candidate(found, to)


def test_a_replica_whose_link_is_down_is_passed_over_for_one_that_follows():
    assert rules.candidate([dataclasses.replace(NEAR, follows=False), FAR], None) == FAR


@pytest.mark.parametrize(("age", "now"), [(0.1, False), (0.6, True), (0.8, True), (0.95, False)])
def test_the_moment_is_shortly_before_sentinel_looks_again(age, now):
    assert rules.is_moment(age) is now


@pytest.mark.parametrize(
    ("info", "name", "says"),
    [
        ({"role": "master"}, "redis-2", ""),
        ({"role": "slave", "master_host": "10.0.0.1"}, "redis-2", "replica of 10.0.0.1"),
        ({"role": "master"}, "redis-1", "follows nobody"),
        ({"role": "slave", "master_host": "10.0.0.3"}, "redis-1", "follows 10.0.0.3"),
        (
            {"role": "slave", "master_host": "10.0.0.2", "master_link_status": "down"},
            "redis-1",
            "link of redis-1",
        ),
        ({"role": "slave", "master_host": "10.0.0.2", "master_link_status": "up"}, "redis-1", ""),
    ],
)
def test_a_move_is_over_when_everybody_follows(info, name, says):
    found = rules.unsettled(info, name, NEAR)
    assert says in found
    assert bool(found) is bool(says)


# --- what a Sentinel sees -------------------------------------------------------------------------

HOSTS = {"redis-1": ONE, "redis-2": TWO, "redis-3": THREE}


def row(address: str, flags: str) -> dict[str, str]:
    return {"ip": address, "flags": flags}


def test_a_sentinel_that_sees_everybody_has_nothing_to_tell():
    servers = [row(ONE, "master"), row(TWO, "slave"), row(THREE, "slave")]
    others = [row(TWO, "sentinel"), row(THREE, "sentinel")]
    assert rules.unseen(HOSTS, servers, others, me="redis-1") == []


@pytest.mark.parametrize("flags", ["s_down,slave", "slave,s_down,disconnected", "disconnected"])
def test_whoever_is_down_or_unknown_is_named_and_who_is_gone_for_good_is_not(flags):
    servers = [row(ONE, "master"), row(TWO, flags), row("10.77.5.9", "s_down,slave")]
    others = [row(TWO, "s_down,sentinel"), row("10.77.5.9", "s_down,sentinel")]
    assert rules.unseen(HOSTS, servers, others, me="redis-1") == [
        "Redis of redis-2",
        "Redis of redis-3",
        "Sentinel of redis-2",
        "Sentinel of redis-3",
    ]


# --- a rebuild ------------------------------------------------------------------------------------


def info(*replicas: tuple[str, str, int], role: str = "master") -> dict[str, object]:
    rows = [{"ip": ip, "state": state, "lag": lag} for ip, state, lag in replicas]
    return {"role": role, "slave_repl_offset": 7, **{f"slave{n}": r for n, r in enumerate(rows)}}


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (info((TWO, "online", 0), (THREE, "online", 1)), ""),
        (info((THREE, "online", 3)), ""),
        (info((TWO, "online", 0)), "no other replica keeps up"),
        (info((TWO, "online", 0), (THREE, "wait_bgsave", 0)), "no other replica keeps up"),
        (info((THREE, "online", 9)), "no other replica keeps up"),
        (info((THREE, "online", 0), role="slave"), "is no primary"),
    ],
)
def test_data_is_thrown_away_where_another_replica_has_all_of_it(seen, says):
    found = rules.keep_data(seen, named=ONE, me=TWO)
    assert says in found
    assert bool(found) is bool(says)


def test_the_primary_s_data_is_kept():
    assert "it is the primary" in rules.keep_data(info((TWO, "online", 0)), named=ONE, me=ONE)


COPIED = {
    "role": "slave",
    "master_link_status": "up",
    "loading": 0,
    "aof_enabled": 1,
    "aof_rewrite_in_progress": 0,
    "aof_last_bgrewrite_status": "ok",
}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, ""),
        ({"role": "master"}, "follows nobody"),
        ({"master_link_status": "down"}, "link"),
        ({"master_link_status": "down", "master_sync_in_progress": 1}, "under way"),
        ({"aof_rewrite_in_progress": 1}, "being written"),
        ({"aof_rewrite_scheduled": 1}, "being written"),
        ({"aof_last_bgrewrite_status": "err"}, "was not written"),
        ({"aof_enabled": 0}, "was not written"),
    ],
)
def test_a_copy_is_whole_when_it_is_on_the_disk(fields, says):
    found = rules.uncopied(COPIED | fields)
    assert says in found
    assert bool(found) is bool(says)


WORDS = st.sampled_from([rules.Word(names=ONE), rules.Word(names=TWO), NOBODY, SILENT])


@given(words=st.lists(WORDS, min_size=3, max_size=5))
def test_a_sentinel_goes_away_only_while_the_others_could_agree_without_it(words):
    found = dict(zip(map("redis-{}".format, range(1, len(words) + 1)), words, strict=True))
    others = words[1:]
    named = {word.names for word in others if word.names}
    agree = sum(bool(word.names) for word in others) > len(words) / 2 and len(named) == 1
    assert (rules.needed(found, me="redis-1") == "") is agree


def test_what_keeps_a_sentinel_is_named():
    assert "redis-3 does not answer" in rules.needed(says(ONE, ONE, SILENT), me="redis-1")
    assert "do not agree" in rules.needed(says(ONE, ONE, TWO), me="redis-1")


def test_a_sentinels_own_memory_is_kept_when_its_ports_change():
    lines = ["port 0", "tls-port 26379", "tls-cert-file /a"]
    before = "port 26379\ndir /x\nsentinel myid 4\n# Generated by CONFIG REWRITE\nuser a on\n"
    after = rules.reached(before, lines)
    kept = "dir /x\nsentinel myid 4\n# Generated by CONFIG REWRITE\nuser a on\n"
    assert after == "\n".join(lines) + "\n" + kept
    assert rules.reached(after, lines) == after
    moved = rules.reached(after, [*lines[:2], "tls-cert-file /b"])
    assert moved.count("tls-cert-file") == 1

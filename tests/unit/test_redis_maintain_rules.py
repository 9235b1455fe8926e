"""Which Redis hosts are taken away for work, in which order, and when not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.redis import Member, primary
from flotilla.rules.redis_maintain import (
    SENTINEL,
    SERVER,
    Need,
    Step,
    need,
    next_step,
    objections,
    other_series,
    plan,
)

NAMES = ("redis-1", "redis-2", "redis-3")
ADDRESSES = {name: f"10.77.5.{name[-1]}" for name in NAMES}
INST = "Inst redis-server [5:8.0.2-3] (5:8.0.3-1 Debian:13/stable [amd64])"


def group(chosen: str = "redis-1") -> list[Member]:
    """Three members, in order."""
    return [
        Member(
            name=name,
            instance_id=f"i-{name}",
            address=ADDRESSES[name],
            role="primary" if name == chosen else "replica",
            error=None,
            primary_address=None if name == chosen else ADDRESSES[chosen],
            is_linked=None if name == chosen else True,
            replicas=2 if name == chosen else 0,
            good_replicas=2 if name == chosen else 0,
            offset=1000,
            used_bytes=1,
            max_bytes=100,
            is_persisting=True,
            version="8.0.2",
            uptime_seconds=9,
            clients=3,
            names=dict.fromkeys(NAMES, ADDRESSES[chosen]),
            quorum_error=None,
            unseen=(),
        )
        for name in NAMES
    ]


def changed(members: list[Member], name: str, **fields: object) -> list[Member]:
    return [replace(m, **fields) if m.name == name else m for m in members]  # type: ignore[arg-type]


def wants(*names: str, services: tuple[str, ...] = (SERVER, SENTINEL)) -> dict[str, Need]:
    return {name: Need(name, ("why",), (), services) for name in names}


def test_only_what_is_newer_is_restarted() -> None:
    assert need("redis-1", []) is None
    unit = "/etc/systemd/system/redis-sentinel.service.d/flotilla.conf"
    found = need("redis-1", [f"newer redis-sentinel {unit}"])
    assert found == Need(
        "redis-1", (f"{unit} changed after redis-sentinel was started",), (), (SENTINEL,)
    )
    assert not found.stops_server
    setting = need("redis-1", ["unread aclfile"])
    assert setting
    assert setting.services == (SERVER,)
    assert "aclfile" in setting.reasons[0]


def test_an_upgrade_and_a_wish_restart_both() -> None:
    upgraded, wished = need("redis-1", [INST]), need("redis-1", [], anyway=True)
    assert upgraded
    assert wished
    assert upgraded.services == wished.services == (SERVER, SENTINEL)
    assert upgraded.reasons == ("redis-server 5:8.0.2-3 -> 5:8.0.3-1",)
    assert wished.reasons == ("a restart was asked for",)


@pytest.mark.parametrize(
    ("new", "allowed"),
    [("5:8.0.3-1", True), ("5:8.0.2-3+deb13u4", True), ("5:8.2.0-1", False), ("5:9.0.0-1", False)],
)
def test_another_series_is_no_patch(new: str, allowed: bool) -> None:
    found = need("redis-1", [INST.replace("5:8.0.3-1", new), INST.replace("redis-server", "libc6")])
    assert found
    assert (other_series([found]) == []) == allowed


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("redis-2", {"is_linked": False}, "its link to redis-1 is down"),
        ("redis-2", {"unseen": ("Sentinel of redis-3",)}, "does not see the Sentinel of redis-3"),
        ("redis-2", {"unseen": None}, "does not tell what its Sentinel sees"),
        ("redis-3", {"names": {**dict.fromkeys(NAMES, "10.77.5.1"), "redis-3": None}}, "nobody"),
        ("redis-3", {"names": dict.fromkeys(NAMES, "10.77.5.2")}, "names 10.77.5.2, not redis-1"),
        ("redis-1", {"good_replicas": 1}, "1 of 2 replicas keep up"),
        ("redis-1", {"offset": 1000 + (5 << 20)}, "bytes behind redis-1"),
        ("redis-2", {"is_persisting": False}, "append-only file"),
    ],
)
def test_with_anything_out_of_order_nobody_is_taken_away(
    name: str, fields: dict[str, object], says: str
) -> None:
    members = changed(group(), name, **fields)
    assert any(says in one for one in objections(members, {}))
    found = next_step(members, {}, wants(*NAMES))
    assert isinstance(found, str)
    assert says in found


def test_a_silent_host_stops_it_too() -> None:
    found = next_step(group()[:2], {"redis-3": "no answer"}, wants(*NAMES))
    assert isinstance(found, str)
    assert "redis-3: no answer" in found


def test_the_last_replica_is_not_taken_away() -> None:
    pair = [
        replace(m, names=dict.fromkeys(NAMES[:2], "10.77.5.1"), good_replicas=1)
        for m in group()[:2]
    ]
    found = next_step(pair, {}, wants("redis-2"))
    assert isinstance(found, str)
    assert "writes would be refused" in found


def test_a_sentinel_is_restarted_beside_a_primary_that_stays() -> None:
    only = wants("redis-1", services=(SENTINEL,))
    assert next_step(group(), {}, only) == Step("redis-1", moves=False)
    assert next(plan(group(), only)).startswith("redis-1: restart redis-sentinel")


def test_the_plan_has_the_primary_last_and_says_that_its_role_moves() -> None:
    lines = [line for line in plan(group("redis-2"), wants(*NAMES)) if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in lines] == ["redis-1", "redis-3", "redis-2"]
    assert "move its role" in lines[-1]


@given(
    st.sets(st.sampled_from(NAMES), min_size=1),
    st.sampled_from(NAMES),
    st.lists(st.one_of(st.none(), st.sampled_from(NAMES)), max_size=6),
)
def test_every_host_is_done_once_and_never_as_the_primary(
    wanted: set[str], first: str, failovers: list[str | None]
) -> None:
    """Whoever becomes primary meanwhile, by itself, before any step."""
    chosen, pending, done = first, wants(*wanted), []
    events = iter(failovers)
    for _ in range(len(failovers) + 2 * len(NAMES)):
        if not pending:
            break
        chosen = next(events, None) or chosen
        step = next_step(group(chosen), {}, pending)
        assert isinstance(step, Step)
        if step.moves:
            assert step.name == chosen
            assert set(pending) == {chosen}, "only when nobody else is left"
            chosen = next(name for name in NAMES if name != chosen)
            continue
        found = primary(group(chosen))
        assert found
        assert step.name != found.name
        done.append(step.name)
        del pending[step.name]
    assert sorted(done) == sorted(wanted)

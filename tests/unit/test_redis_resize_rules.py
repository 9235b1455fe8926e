"""Which Redis hosts get another type, what keeps them from it, and when their memory changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_redis_maintain_rules import NAMES, changed, group

from flotilla.rules.redis import Member
from flotilla.rules.redis_resize import MIB, Machine, Resize, Size, plan, resize

OLD, NEW = "r6i.large", "r6i.xlarge"
ZONES = frozenset({"a", "b", "c"})
LARGE = Size(NEW, 32768, frozenset({"x86_64"}), ZONES)
WRONG = ("redis-2: its link to redis-1 is down",)


def machines(**types: str) -> list[Machine]:
    """Three that run and are OLD; ``redis_2="NEW"`` or ``redis_2="stopped"`` says otherwise."""
    made = []
    for name, zone in zip(NAMES, "abc", strict=True):
        said = types.get(name.replace("-", "_"), "").split()
        kind = NEW if "NEW" in said else OLD
        state = next((word for word in said if word != "NEW"), "running")
        made.append(Machine(name, f"i-{name}", kind, state, zone, "x86_64"))
    return made


def members(used_mb: int = 100, max_mb: int = 6000) -> list[Member]:
    return [replace(m, used_bytes=used_mb * MIB, max_bytes=max_mb * MIB) for m in group()]


def decided(found: Resize | str) -> Resize:
    assert isinstance(found, Resize), found
    return found


def test_all_that_are_another_type_are_needed_and_memory_is_raised() -> None:
    found = decided(resize(machines(), members(), (), LARGE, 12000))
    assert (list(found.needed), found.raised, found.lowered) == (list(NAMES), NAMES, ())
    lines = list(plan(found, members(), LARGE))
    assert lines[0].startswith("redis-2: stop, r6i.large -> r6i.xlarge, start")
    assert lines[2].startswith("redis-1: move its role, then stop")
    assert lines[3] == "redis-1, redis-2, redis-3: set maxmemory to 12000 MiB"


def test_who_has_its_type_and_its_memory_needs_nothing() -> None:
    found = decided(
        resize(machines(redis_1="NEW", redis_2="NEW", redis_3="NEW"), members(), (), LARGE, 6000)
    )
    assert not found


def test_memory_that_is_left_as_it_is_is_pointed_out() -> None:
    found = decided(resize(machines(), members(), (), LARGE, 6000))
    assert list(plan(found, members(), LARGE))[-1] == (
        "maxmemory is 6000 MiB; r6i.xlarge has room for 16384: fleet.redis.maxmemory_mb"
    )


def test_memory_is_lowered_before_anybody_gets_smaller() -> None:
    found = decided(resize(machines(), members(max_mb=12000), (), LARGE, 6000))
    lines = list(plan(found, members(), LARGE))
    assert lines[0] == "redis-1, redis-2, redis-3: set maxmemory to 6000 MiB"


@pytest.mark.parametrize(
    ("change", "used_mb", "maxmemory_mb", "says"),
    [
        ({}, 100, 20000, "fleet.redis.maxmemory_mb is 20000, and of the 32768 MiB"),
        ({}, 5900, 6000, "fleet.redis.maxmemory_mb is 6000: redis-1 uses 5900 MiB now"),
        ({"memory_mb": 8192}, 5900, 4000, "has 8192 MiB, of which 4096 are for data: redis-1"),
        ({"architectures": frozenset({"arm64"})}, 1, 6000, "redis-1 is x86_64 and r6i.xlarge runs"),
        ({"zones": frozenset({"a", "c"})}, 1, 6000, "redis-2 is in b, and r6i.xlarge is in a, c"),
        ({"zones": frozenset()}, 1, 6000, "is in no zone of this region"),
    ],
)
def test_a_type_that_does_not_fit_is_refused(
    change: dict[str, object], used_mb: int, maxmemory_mb: int, says: str
) -> None:
    size = replace(LARGE, **change)  # type: ignore[arg-type]
    found = resize(machines(), members(used_mb), (), size, maxmemory_mb)
    assert isinstance(found, str)
    assert says in found


def test_what_is_wrong_is_waited_for_only_where_a_run_was_cut_off() -> None:
    assert resize(machines(), members(), WRONG, LARGE, 6000) == WRONG[0]
    found = decided(resize(machines(redis_2="NEW"), members(), WRONG, LARGE, 6000))
    assert list(plan(found, members(), LARGE))[1] == f"  now: {WRONG[0]}"
    assert list(found.needed) == ["redis-1", "redis-3"]


def test_a_host_that_was_started_and_does_not_answer_yet_comes_back_first() -> None:
    dead = changed(members(), "redis-2", role=None)
    found = decided(resize(machines(redis_2="NEW"), dead, WRONG, LARGE, 6000))
    assert found.returning == ("redis-2",)


def test_a_stopped_host_comes_back_first_and_is_not_taken_away_again() -> None:
    heard = [one for one in members() if one.name != "redis-2"]
    found = decided(resize(machines(redis_2="stopped"), heard, WRONG, LARGE, 6000))
    assert (found.away, found.returning) == (machines(redis_2="stopped")[1], ("redis-2",))
    assert list(found.needed) == ["redis-1", "redis-3"]
    assert next(plan(found, heard, LARGE)).startswith("redis-2: start as r6i.xlarge")


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (machines()[:2], "fewer than 3 Redis hosts: redis-1, redis-2"),
        (machines(redis_2="stopped", redis_3="stopping"), "redis-3 is stopping: one may be away"),
    ],
)
def test_with_too_few_hosts_nothing_is_touched(there: list[Machine], says: str) -> None:
    found = resize(there, members(), (), LARGE, 6000)
    assert isinstance(found, str)
    assert says in found


@given(
    st.lists(
        st.sampled_from(
            ["", "NEW", "stopped", "NEW stopped", "stopping", "pending", "NEW pending"]
        ),
        min_size=3,
        max_size=3,
    ),
    st.sets(st.sampled_from(NAMES)),
    st.booleans(),
    st.integers(1, 40000),
    st.integers(16, 40000),
)
def test_nobody_is_taken_away_beside_another_and_none_into_what_is_too_small(
    states: list[str], heard: set[str], wrong: bool, used_mb: int, maxmemory_mb: int
) -> None:
    there = machines(**dict(zip(("redis_1", "redis_2", "redis_3"), states, strict=True)))
    said = [one for one in members(used_mb) if one.name in heard]
    found = resize(there, said, WRONG if wrong else (), LARGE, maxmemory_mb)
    if isinstance(found, str):
        return
    assert used_mb <= found.maxmemory_mb <= LARGE.most_mb
    away = [one.name for one in there if one.state.startswith("stop")]
    assert len(away) <= 1
    assert set(away) <= set(found.returning)
    assert not set(away) & set(found.needed)
    others = {one.name for one in there if one.type != NEW}
    assert set(found.needed) == others - set(away)

"""Whose data may be thrown away, and when not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_redis_maintain_rules import ADDRESSES, NAMES, changed, group

from flotilla.rules.redis import Member, primary
from flotilla.rules.redis_rebuild import Rebuild, rebuild_of

DEAD: dict[str, Any] = {
    "role": None,
    "error": "Connection refused",
    "primary_address": None,
    "is_linked": None,
    "good_replicas": None,
    "offset": None,
    "is_persisting": None,
}


def test_a_replica_that_does_not_start_is_rebuilt_and_what_is_wrong_is_said() -> None:
    members = changed(changed(group(), "redis-2", **DEAD), "redis-1", good_replicas=1)
    assert rebuild_of(members, {}, "redis-2") == Rebuild(
        "redis-2", "redis-1", ("redis-3",), ("Redis does not answer (Connection refused)",)
    )


def test_a_replica_in_order_may_be_rebuilt_too() -> None:
    assert rebuild_of(group(), {}, "redis-3") == Rebuild("redis-3", "redis-1", ("redis-2",), ())


@pytest.mark.parametrize(
    ("name", "fields", "host", "says"),
    [
        ("redis-1", {}, "redis-1", "redis-1 is the primary"),
        ("redis-3", {"is_linked": False}, "redis-2", "no other replica"),
        ("redis-3", {"is_syncing": True}, "redis-2", "no other replica"),
        ("redis-3", DEAD, "redis-2", "no other replica"),
        # It counts one, and that is the one whose data would go.
        ("redis-1", {"good_replicas": 1}, "redis-2", "no other replica"),
        ("redis-1", {"role": "replica"}, "redis-2", "no host is the primary"),
    ],
)
def test_data_that_may_be_the_last_is_kept(
    name: str, fields: dict[str, Any], host: str, says: str
) -> None:
    found = rebuild_of(changed(group(), name, **fields), {}, host)
    assert isinstance(found, str)
    assert says in found


def test_a_host_that_cannot_be_asked_is_not_rebuilt() -> None:
    found = rebuild_of([m for m in group() if m.name != "redis-2"], {"redis-2": "gone"}, "redis-2")
    assert found == "redis-2 cannot be asked: gone"


def anyhow(name: str) -> st.SearchStrategy[Member]:
    """A member in any state."""
    base = next(one for one in group() if one.name == name)
    addresses = st.sampled_from([None, *ADDRESSES.values()])
    return st.builds(
        lambda **fields: replace(base, **fields),
        role=st.sampled_from(["primary", "replica", None]),
        primary_address=addresses,
        is_linked=st.booleans(),
        is_syncing=st.booleans(),
        good_replicas=st.sampled_from([None, 0, 1, 2]),
        names=st.fixed_dictionaries(dict.fromkeys(NAMES, addresses)),
    )


@given(st.tuples(*map(anyhow, NAMES)), st.sampled_from(NAMES))
def test_whatever_the_state_somebody_else_has_everything(
    members: tuple[Member, ...], host: str
) -> None:
    found = rebuild_of(members, {}, host)
    if isinstance(found, str):
        assert found
        return
    chosen = primary(members)
    assert chosen
    assert chosen.name == found.primary != host
    for name in found.others:
        one = next(m for m in members if m.name == name)
        assert name not in {host, chosen.name}
        assert (one.role, one.primary_address, one.is_linked) == ("replica", chosen.address, True)
    assert found.others
    assert chosen.good_replicas

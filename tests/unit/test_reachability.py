"""The table of who may talk to whom, and the security groups made from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.provision.world import data
from flotilla.rules.reachability import ANYWHERE, Rule, groups, rows
from flotilla.settings import ROLES

OUTSIDE = {"operator": ("198.51.100.0/24",), "clients": (ANYWHERE,), "internet": (ANYWHERE,)}
TABLE = rows(data("reachability.yml"))
FLEET = groups(TABLE, roles=ROLES, outside=OUTSIDE)


def opening(source: str, target: str) -> set[int | None]:
    """Ports on which `target` lets `source` in."""
    return {rule.port for rule in FLEET[target].ingress if rule.peer == source}


def test_the_fleet_has_exactly_these_openings():
    between = {
        (source, target): ports
        for source in (*ROLES, *OUTSIDE["operator"], ANYWHERE)
        for target in ROLES
        if (ports := opening(source, target))
    }
    assert between == {
        ("198.51.100.0/24", "bastion"): {22},
        (ANYWHERE, "lb"): {80, 443},
        ("bastion", "lb"): {22, 8404},
        ("bastion", "app"): {22},
        ("bastion", "mysql"): {22},
        ("bastion", "redis"): {22},
        ("lb", "lb"): {None, 80, 8404, 8405},
        ("lb", "app"): {80, 443},
        ("app", "mysql"): {3306, 3380},
        ("app", "redis"): {6379, 3381},
        ("mysql", "mysql"): {3306, 3380, 33062},
        ("redis", "redis"): {6379, 26379, 3381},
    }


def test_vrrp_is_the_only_protocol_without_ports():
    portless = {rule for group in FLEET.values() for rule in group.ingress if rule.port is None}
    assert {(rule.protocol, rule.peer) for rule in portless} == {("112", "lb")}


@pytest.mark.parametrize("role", ROLES)
def test_out_of_the_fleet_goes_only_to_mirrors_and_apis(role):
    out = {(r.protocol, r.port) for r in FLEET[role].egress if r.peer not in ROLES}
    assert out == {("tcp", 80), ("tcp", 443)}


entries = st.fixed_dictionaries(
    {
        "from": st.sampled_from([*ROLES, "fleet", "operator", "internet"]),
        "to": st.sampled_from([*ROLES, "fleet"]),
        "ports": st.lists(st.integers(1, 65535), min_size=1, max_size=3),
        "why": st.just("a reason"),
    }
)


@given(st.lists(entries, max_size=12))
def test_both_ends_of_a_conversation_agree(table):
    made = groups(rows(table), roles=ROLES, outside=OUTSIDE)
    heard = {
        (source, target, r.protocol, r.port)
        for target in ROLES
        for r in made[target].ingress
        if (source := r.peer) in ROLES
    }
    said = {
        (source, target, r.protocol, r.port)
        for source in ROLES
        for r in made[source].egress
        if (target := r.peer) in ROLES
    }
    assert heard == said


def test_a_reason_alone_makes_no_difference():
    assert Rule("tcp", 22, "lb", "old words") == Rule("tcp", 22, "lb", "new words")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"from": "lb", "to": "app", "ports": [80]}, "why"),
        ({"from": "lb", "to": "app", "ports": [80], "why": "x", "port": 80}, "knows only"),
        ({"from": "lb", "to": "app", "why": "x"}, "needs ports"),
        ({"from": "lb", "to": "lb", "protocol": "112", "ports": [1], "why": "x"}, "has no ports"),
        ({"from": "lb", "to": "app", "ports": [70000], "why": "x"}, "from 1 to 65535"),
    ],
)
def test_a_bad_row_is_named(entry, complaint):
    with pytest.raises(ValueError, match=complaint):
        rows([entry])


def test_a_misspelt_peer_is_an_error_and_not_an_opening_to_nobody():
    table = rows([{"from": "lb", "to": "ap", "ports": [80], "why": "x"}])
    with pytest.raises(ValueError, match="no such peer: ap"):
        groups(table, roles=ROLES, outside=OUTSIDE)

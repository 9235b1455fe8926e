"""What hosts are told to look for on the wire is what a real packet filter lets through."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from netns.conftest import INSIDE, OPERATOR, ROUTER, Pair, Side
from netns.test_firewall import GROUPS, text_of
from security import reach
from security.wire import ICMP, TCP, UDP

from flotilla.rules.reachability import Group, Rule
from flotilla.settings import ROLES

WIRE = (Path(__file__).parents[1] / "security" / "wire.py").read_text()
VRRP = 112
PORTS = reach.tcp_ports(GROUPS)
SPOKEN = reach.spoken(GROUPS)
SECONDS, LONG_SECONDS = 2.5, 10.0


def ask(orders: Mapping[Side, dict[str, Any]], lead: float = 1.5) -> dict[Side, Any]:
    """What both sides say when they look at the same time."""
    common = {
        "at": time.time() + lead,
        "seconds": SECONDS,
        "mark": "flotilla-test",
        "hear": sorted({protocol for protocol, _ in SPOKEN}),
        "outside": reach.NOBODY,
    }
    started = {side: side.spawn(WIRE) for side in orders}
    for side, process in started.items():
        assert process.stdin
        process.stdin.write(json.dumps(common | orders[side]))
        process.stdin.close()
        process.stdin = None
    told = {side: process.communicate(timeout=40)[0] for side, process in started.items()}
    if not all(told.values()) and lead < LONG_SECONDS:  # too busy a machine to begin in time
        return ask(orders, LONG_SECONDS)
    return {side: json.loads(one) for side, one in told.items()}


def both(pair: Pair) -> dict[Side, Any]:
    """Each side tries everything on the other, and on nobody."""
    targets = {pair.host: ROUTER, pair.far: INSIDE}
    return ask(
        {
            side: {
                "dial": {peer: PORTS, reach.NOBODY: PORTS},
                "say": [[to, *what] for to in (peer, reach.NOBODY) for what in SPOKEN],
            }
            for side, peer in targets.items()
        }
    )


def load(pair: Pair, role: str, group: Group | None = None) -> None:
    pair.host.run("nft", "-f", "-", text=text_of(role, group))
    # The host's own neighbour is its router: without one nothing would leave for nobody.
    pair.far.run("sysctl", "-qw", "net.ipv4.ip_forward=1")


def heard(answer: Mapping[str, Any]) -> set[tuple[int, int | None]]:
    return {(protocol, port) for _, protocol, port in answer["heard"]}


def arrived(found: Mapping[Side, Any], one: Side, peer: str, other: Side) -> set[Any]:
    """What got from one side to the other."""
    return {(TCP, port) for port in found[one]["through"][peer]} | heard(found[other])


@pytest.mark.parametrize("role", ROLES)
def test_what_is_seen_is_the_table(pair: Pair, role: str):
    load(pair, role)
    found = both(pair)
    group = GROUPS[role]
    # Between roles the filter of a host knows the VPC only, so any role's host may be the other.
    takes = {
        (reach.number(r.protocol), r.port) for r in group.ingress if r.peer in ROLES
    } | reach.admitted(group, ROUTER)
    sends = {
        (reach.number(r.protocol), r.port) for r in group.egress if r.peer in ROLES
    } | reach.released(group, ROUTER)
    assert arrived(found, pair.far, INSIDE, pair.host) == takes
    assert arrived(found, pair.host, ROUTER, pair.far) == sends
    assert {tuple(one) for one in found[pair.host]["left"]} == reach.released(group)


@pytest.mark.parametrize(
    ("direction", "rule"),
    [
        ("ingress", Rule("tcp", 8080, "app")),
        ("ingress", Rule("udp", 514, "app")),
        ("ingress", Rule("47", None, "app")),
        ("ingress", Rule("icmp", None, "app")),
        ("egress", Rule("tcp", 25, "0.0.0.0/0")),
        ("egress", Rule("udp", 53, "0.0.0.0/0")),
        ("egress", Rule("112", None, "app")),
    ],
)
def test_a_rule_too_many_is_seen(pair: Pair, direction: str, rule: Rule):
    group = GROUPS["redis"]
    wider = {"ingress": group.ingress, "egress": group.egress}
    wider[direction] = wider[direction] | {rule}
    load(pair, "redis", Group(**wider))
    found = both(pair)
    what = reach.number(rule.protocol), rule.port
    one, other, peer = (
        (pair.far, pair.host, INSIDE) if direction == "ingress" else (pair.host, pair.far, ROUTER)
    )
    if rule.protocol == "tcp":
        assert rule.port in found[one]["through"][peer]
    else:
        assert what in heard(found[other])
    if rule.peer == "0.0.0.0/0":
        assert list(what) in found[pair.host]["left"]


def test_a_rule_that_is_missing_is_seen(pair: Pair):
    group = GROUPS["redis"]
    less = {r for r in group.ingress if r.port != 26379}
    load(pair, "redis", Group(frozenset(less), group.egress))
    assert 26379 not in both(pair)[pair.far]["through"][INSIDE]


def test_packets_of_others_are_not_ours(pair: Pair):
    load(pair, "app")
    found = ask({pair.host: {"dial": {}, "say": []}, pair.far: {"dial": {}, "say": []}})
    assert found[pair.host] == {"through": {}, "heard": [], "left": []}


def test_whoever_begins_late_says_so(pair: Pair):
    order = {"at": time.time() - 5, "hear": [UDP, ICMP, VRRP], "mark": "x", "outside": OPERATOR}
    done = subprocess.run(
        pair.host.argv("python3", "-c", WIRE),
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "late" in done.stderr


def test_the_same_rules_give_the_same_listing_and_others_another(pair: Pair):
    """As ``test_security_reach`` compares the filter in a host's kernel with the table."""
    list_ = ("nft", "-s", "list", "table", "inet", "flotilla")

    def fresh(text: str) -> str:
        script = f"nft -f - && {' '.join(list_)}"
        return reach.bare(pair.host.run("unshare", "-n", "sh", "-c", script, text=text))

    text = text_of("lb")
    pair.host.run("nft", "-f", "-", text=text)
    users = "add element inet flotilla metadata_users { 998, 1000 }\n"
    pair.host.run("nft", "-f", "-", text=users)
    assert reach.bare(pair.host.run(*list_)) == fresh(text)
    more = "insert rule inet flotilla input tcp dport 8080 accept\n"
    pair.host.run("nft", "-f", "-", text=more)
    assert reach.bare(pair.host.run(*list_)) != fresh(text)

"""The comparison with the reachability table sees one rule too many and one too few, wherever."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from security import reach
from security.reach import Flow, Host
from security.wire import ICMP, TCP, UDP

from flotilla.provision.world import data
from flotilla.rules.reachability import ANYWHERE, Group, Rule, groups, rows
from flotilla.settings import ROLES

ALLOWED = ("198.18.0.0/24",)
GROUPS = groups(
    rows(data("reachability.yml")),
    roles=ROLES,
    outside={"operator": ALLOWED, "clients": ALLOWED, "internet": (ANYWHERE,)},
)
HOSTS = [
    Host(f"{role}-{n}", role, f"10.77.{i}.{n}")
    for i, role in enumerate(ROLES)
    for n in range(1, 2 if role == "bastion" else 4)
]


def with_rule(role: str, direction: str, rule: Rule, *, there: bool) -> dict[str, Group]:
    """The groups, with this rule or without it."""
    rules = getattr(GROUPS[role], direction)
    changed = rules | {rule} if there else rules - {rule}
    return {**GROUPS, role: replace(GROUPS[role], **{direction: changed})}


def answers(flows: set[Flow]) -> dict[str, dict]:
    """What hosts would answer if these went through."""
    address = {host.name: host.address for host in HOSTS}
    made = {host.name: {"through": {}, "heard": [], "left": []} for host in HOSTS}
    for source, target, protocol, port in flows:
        if protocol == TCP:
            made[source]["through"].setdefault(address[target], []).append(port)
        else:
            made[target]["heard"].append([address[source], protocol, port])
    return made


def test_a_fleet_as_the_table_has_it_is_as_the_table_has_it():
    wanted = reach.permitted(GROUPS, HOSTS)
    assert reach.differences(wanted, reach.seen(HOSTS, answers(wanted))) == []


def test_what_the_table_means_is_known():
    """By hand, so that the comparison cannot agree with itself alone."""
    wanted = reach.permitted(GROUPS, HOSTS)
    to = {
        (source, target): {
            (flow.protocol, flow.port)
            for flow in wanted
            if (flow.source, flow.target) == (source, target)
        }
        for source, target in product(*[[host.name for host in HOSTS]] * 2)
    }
    assert to["bastion-1", "app-1"] == {(TCP, 22)}
    assert to["lb-1", "lb-2"] == {(TCP, 80), (TCP, 8404), (TCP, 8405), (112, None)}
    assert to["app-1", "mysql-2"] == {(TCP, 3306), (TCP, 3380)}
    assert to["redis-1", "redis-3"] == {(TCP, 6379), (TCP, 26379), (TCP, 3381)}
    assert to["app-1", "app-2"] == to["mysql-1", "app-1"] == to["app-1", "bastion-1"] == set()
    # What may come from 198.18.0.0/24 only: a host of the VPC is none of these clients.
    assert to["app-1", "lb-1"] == set()
    assert reach.admitted(GROUPS["bastion"], "198.18.0.9") == {(TCP, 22)}
    assert reach.admitted(GROUPS["bastion"], "198.18.1.9") == set()
    assert reach.admitted(GROUPS["lb"], "198.18.0.9") == {(TCP, 80), (TCP, 443)}
    for role in ROLES:
        assert reach.released(GROUPS[role]) == {(TCP, 80), (TCP, 443)}


def test_clients_from_anywhere_are_hosts_too():
    table = groups(
        rows(data("reachability.yml")),
        roles=ROLES,
        outside={"operator": ALLOWED, "clients": (ANYWHERE,), "internet": (ANYWHERE,)},
    )
    assert Flow("app-1", "lb-1", TCP, 443) in reach.permitted(table, HOSTS)


@given(data_=st.data())
def test_every_flow_more_or_less_is_named(data_):
    wanted = reach.permitted(GROUPS, HOSTS)
    source, target = data_.draw(
        st.tuples(st.sampled_from(HOSTS), st.sampled_from(HOSTS)).filter(lambda p: p[0] != p[1])
    )
    what = data_.draw(
        st.sampled_from([*((TCP, port) for port in reach.tcp_ports(GROUPS)), *reach.spoken(GROUPS)])
    )
    flow = Flow(source.name, target.name, *what)
    found = reach.seen(HOSTS, answers(wanted ^ {flow}))
    told = reach.differences(wanted, found)
    assert len(told) == 1
    assert f"{source.name} -> {target.name}" in told[0]
    assert ("no row" in told[0]) == (flow not in wanted)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_every_rule_more_or_less_in_a_group_is_named(role: str, direction: str):
    """Also one that no packet shows, because the other side does not play along."""
    rules = getattr(GROUPS[role], direction)
    more = Rule("tcp", 8080, "10.77.0.0/16")
    for rule in [*rules, more]:
        changed = with_rule(role, direction, rule, there=rule not in rules)
        want, have = reach.wished(GROUPS)[role], reach.wished(changed)[role]
        assert len(reach.differences(want[direction], have[direction])) == 1


def test_groups_are_read_as_ec2_describes_them():
    roles = {"sg-1": "app", "sg-2": "mysql"}
    both = {"FromPort": 3306, "ToPort": 3306, "IpProtocol": "tcp"}
    every = {"IpProtocol": "-1", "UserIdGroupPairs": [], "IpRanges": [{"CidrIp": ANYWHERE}]}
    found = reach.declared(
        [
            {
                "GroupId": "sg-2",
                "IpPermissions": [
                    {
                        **both,
                        "UserIdGroupPairs": [{"GroupId": "sg-1"}, {"GroupId": "sg-9"}],
                        "IpRanges": [],
                        "Ipv6Ranges": [{"CidrIpv6": "::/0"}],
                    }
                ],
                "IpPermissionsEgress": [every],
            }
        ],
        roles,
    )["mysql"]
    assert found["ingress"] == {("tcp", peer, 3306, 3306) for peer in ("app", "sg-9", "::/0")}
    assert found["egress"] == {("-1", ANYWHERE, None, None)}


def test_a_host_that_does_not_answer_is_no_closed_host():
    found = answers(set())
    del found["app-1"]
    with pytest.raises(KeyError, match="app-1"):
        reach.seen(HOSTS, found)


def test_the_scan_tries_what_the_table_names_what_listens_and_more():
    ports = reach.tcp_ports(GROUPS, [41000])
    assert {22, 80, 443, 3306, 33062, 26379, 41000, 4566} <= set(ports)
    assert {(112, None), (ICMP, None), (UDP, 53)} <= set(reach.spoken(GROUPS))
    # Each scan is some hundred packets a host, not a flood.
    assert len(ports) < 60
    assert len(reach.spoken(GROUPS)) < 20


def test_accounts_of_a_host_are_no_difference_between_filters():
    accounts = "\tset metadata_users {\n\t\ttype uid\n\t\telements = { %s }\n\t}\n\n"
    text = f"table inet flotilla {{\n{accounts}\tchain x {{\n\t}}\n}}\n"
    assert reach.bare(text % "0") == reach.bare(text % "0,\n\t\t\t     998")
    assert reach.bare(text % "0") != reach.bare(text.replace("chain x", "chain y") % "0")
    assert "chain x" in reach.bare(text % "7")

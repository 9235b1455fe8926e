"""Which servers a load balancer gains and loses, whatever EC2 answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flotilla.rules.discovery import (
    DRAIN_BIT,
    MAINTENANCE_BIT,
    Decision,
    Host,
    Kind,
    Limits,
    Memory,
    Seen,
    after_no_answer,
    decide,
    released,
)
from flotilla.rules.rotation import Server


def address(number: int) -> str:
    return f"10.0.0.{number}"


def host(number: int, **changed: str) -> Host:
    known = {"name": f"app-{number}", "address": address(number), "instance_id": f"i-{number}"}
    return Host(**(known | changed))


def up(number: int, *, name: str = "", admin: int = 0, sessions: int = 0) -> Seen:
    status = "MAINT" if admin & 1 else "DRAIN" if admin & 8 else "UP"
    name = name or f"app-{number}"
    return Seen(Server(name, status, "L7OK", sessions, 0, 100, f"{address(number)}:80"), admin)


def down(number: int, *, admin: int = 0) -> Seen:
    server = Server(f"app-{number}", "DOWN", "L4CON", 0, 0, 100, f"{address(number)}:80")
    return Seen(server, admin)


def named(*seen: Seen) -> dict[str, Seen]:
    return {one.server.name: one for one in seen}


def orders(decision: Decision) -> list[tuple[str, str]]:
    return [(order.kind.value, order.name) for order in decision.orders]


THREE = named(up(1), up(2), up(3))
EMPTY = Memory()
# Which instances were seen behind the servers.
KNOWN = Memory(instances={f"app-{number}": f"i-{number}" for number in (1, 2, 3)})


def test_a_converged_fleet_gets_no_order() -> None:
    assert decide([host(1), host(2), host(3)], THREE, EMPTY).orders == ()


def test_a_new_host_is_added_as_soon_as_it_has_an_address() -> None:
    assert orders(decide([host(1), host(4, state="pending")], named(up(1)), EMPTY)) == [
        ("add", "app-4")
    ]
    assert orders(decide([host(1), host(4, address="")], named(up(1)), EMPTY)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"lifecycle": "Terminating:Wait"},
        {"lifecycle": "Terminating"},
        {"lifecycle": "Standby"},
        {"state": "shutting-down", "address": ""},
        {"state": "stopping"},
    ],
)
def test_a_host_that_leaves_is_drained_at_once_and_never_added(change: dict[str, str]) -> None:
    hosts = [host(1), host(2), host(3, **change)]
    assert orders(decide(hosts, THREE, KNOWN)) == [("drain", "app-3")]
    assert orders(decide(hosts, named(up(1), up(2)), KNOWN)) == []


def test_a_terminated_host_is_deleted_once_drained_and_idle() -> None:
    hosts = [host(1), host(3, state="terminated", address="")]
    first = decide(hosts, named(up(1), up(3)), KNOWN)
    assert first.memory.drained == {"app-3": address(3)}
    busy = decide(hosts, named(up(1), up(3, admin=DRAIN_BIT, sessions=2)), first.memory)
    assert busy.orders == ()
    idle = decide(hosts, named(up(1), up(3, admin=DRAIN_BIT)), busy.memory)
    assert orders(idle) == [("delete", "app-3")]


def test_an_instance_that_ended_long_ago_says_nothing_of_the_host_with_its_name_now() -> None:
    """EC2 shows it for an hour, and in an answer that is cut short it may be there alone."""
    old = [host(n, instance_id=f"i-old-{n}", state="terminated", address="") for n in (2, 3)]
    servers, memory = THREE, KNOWN
    for _ in range(10):
        decision = decide([host(1), *old], servers, memory)
        assert decision.orders == ()
        memory = decision.memory
    assert "not believed" in decision.notes[0]
    assert decide([host(1), host(2), host(3), *old], THREE, memory).orders == ()


def test_a_service_that_knows_no_instances_yet_takes_no_ended_one_for_a_servers() -> None:
    hosts = [host(1), host(2), host(3, state="terminated", address="")]
    first = decide(hosts, THREE, EMPTY)
    assert first.orders == ()
    assert first.memory.instances == {"app-1": "i-1", "app-2": "i-2"}
    assert orders(decide(hosts, THREE, first.memory)) == [("drain", "app-3")]


def test_a_host_in_standby_stays_a_drained_server_and_returns_with_its_host() -> None:
    away = [host(1), host(2), host(3, lifecycle="Standby")]
    first = decide(away, THREE, EMPTY)
    out = named(up(1), up(2), up(3, admin=DRAIN_BIT))
    assert decide(away, out, first.memory).orders == ()
    back = decide([host(1), host(2), host(3)], out, first.memory)
    assert orders(back) == [("return", "app-3")]
    assert back.memory.drained == {}


@pytest.mark.parametrize("admin", [DRAIN_BIT, MAINTENANCE_BIT, DRAIN_BIT | MAINTENANCE_BIT])
def test_what_a_deploy_took_out_is_not_moved(admin: int) -> None:
    servers = named(up(1), up(2), up(3, admin=admin))
    for change in ({}, {"lifecycle": "Terminating"}, {"state": "stopped"}):
        assert decide([host(1), host(2), host(3, **change)], servers, EMPTY).orders == ()


def test_a_server_we_drained_and_a_deploy_took_over_is_the_deploys() -> None:
    memory = Memory(drained={"app-3": address(3)})
    servers = named(up(1), up(2), up(3, admin=MAINTENANCE_BIT))
    decision = decide([host(1), host(2), host(3)], servers, memory)
    assert decision.orders == ()
    assert decision.memory.drained == {}


def test_a_missing_host_counts_only_when_it_is_missing_twice_in_a_row() -> None:
    hosts = [host(1), host(2)]
    first = decide(hosts, THREE, EMPTY)
    assert first.orders == ()
    assert orders(decide(hosts, THREE, first.memory)) == [("drain", "app-3")]
    seen_again = decide([*hosts, host(3)], THREE, first.memory)
    assert decide(hosts, THREE, seen_again.memory).orders == ()
    assert decide(hosts, THREE, after_no_answer(first.memory)).orders == ()


def test_an_answer_in_which_many_healthy_servers_are_missing_is_not_believed() -> None:
    servers = named(*(up(number) for number in range(1, 9)))
    hosts = [host(number) for number in range(1, 5)]
    memory = EMPTY
    for _ in range(50):
        decision = decide(hosts, servers, memory)
        assert decision.orders == ()
        memory = decision.memory
    assert "4 servers" in decision.notes[0]


def test_missing_servers_that_fail_their_checks_as_well_go() -> None:
    servers = named(up(1), *(down(number) for number in range(2, 9)))
    first = decide([host(1)], servers, EMPTY)
    second = decide([host(1)], servers, first.memory)
    assert orders(second) == [("drain", f"app-{n}") for n in range(2, 9)]


def test_a_deploys_server_is_deleted_only_after_a_long_absence() -> None:
    servers, memory = named(up(1), up(3, admin=MAINTENANCE_BIT)), EMPTY
    limits = Limits(held_absences=5)
    for _ in range(4):
        decision = decide([host(1)], servers, memory, limits)
        assert decision.orders == ()
        memory = decision.memory
    assert orders(decide([host(1)], servers, memory, limits)) == [("delete", "app-3")]


def test_an_empty_answer_moves_nothing_and_says_so() -> None:
    decision = decide([], THREE, Memory({"app-1": 9, "app-2": 9, "app-3": 9}))
    assert decision.orders == ()
    assert decision.memory.absences == {}
    assert decision.notes


def test_the_last_server_serves_on_even_if_all_hosts_leave() -> None:
    hosts = [host(1, lifecycle="Terminating"), host(2, lifecycle="Terminating"), host(9)]
    decision = decide(hosts, named(up(1), up(2), down(9)), EMPTY)
    assert orders(decision) == [("drain", "app-1")]
    after = named(up(1, admin=DRAIN_BIT), up(2), down(9))
    assert decide(hosts, after, decision.memory).orders == ()


def test_a_name_that_another_host_has_now_is_freed_and_given_to_it() -> None:
    hosts = [host(1), Host("app-3", "10.0.0.33")]
    first = decide(hosts, named(up(1), up(3)), EMPTY)
    assert orders(first) == [("drain", "app-3")]
    second = decide(hosts, named(up(1), up(3, admin=DRAIN_BIT)), first.memory)
    assert orders(second) == [("delete", "app-3")]
    third = decide(hosts, named(up(1)), second.memory)
    assert orders(third) == [("add", "app-3")]


def test_a_host_that_was_given_a_name_serves_under_it_before_the_old_one_goes() -> None:
    hosts = [host(1), host(4)]
    old = up(4, name="app-0a1b2c")
    memory = EMPTY
    for _ in range(5):
        decision = decide(hosts, named(up(1), old), memory)
        assert orders(decision) == [("add", "app-4")]
        memory = decision.memory
    waiting = decide(hosts, named(up(1), old, down(4)), memory)
    assert waiting.orders == ()
    assert orders(decide(hosts, named(up(1), old, up(4)), waiting.memory)) == [
        ("drain", "app-0a1b2c")
    ]


def test_a_host_that_is_given_a_name_while_a_deploy_works_on_it_stays_out() -> None:
    old = up(4, name="app-0a1b2c", admin=MAINTENANCE_BIT)
    assert decide([host(1), host(4)], named(up(1), old), EMPTY).orders == ()


def test_with_sticky_clients_a_server_in_maintenance_is_known_as_ours() -> None:
    limits = Limits(out_bit=MAINTENANCE_BIT)
    memory = Memory(drained={"app-3": address(3)})
    servers = named(up(1), up(3, admin=MAINTENANCE_BIT))
    assert orders(decide([host(1), host(3)], servers, memory, limits)) == [("return", "app-3")]


IDLE = {"app-3": up(3, admin=DRAIN_BIT).server}


@pytest.mark.parametrize(
    ("balancers", "gone"),
    [
        ([IDLE, IDLE], ["app-3"]),
        ([IDLE, {}], ["app-3"]),
        ([IDLE, {"app-3": down(3).server}], ["app-3"]),
        ([IDLE, {"app-3": up(3).server}], []),
        ([IDLE, {"app-3": up(3, admin=DRAIN_BIT, sessions=1).server}], []),
        ([IDLE, None], []),
    ],
)
def test_a_host_is_let_go_when_no_load_balancer_needs_it(
    balancers: list[dict[str, Server] | None], gone: list[str]
) -> None:
    hosts = [host(1), host(3, lifecycle="Terminating:Wait")]
    assert [one.name for one in released(hosts, balancers)] == gone


def test_a_host_that_nobody_holds_back_is_not_let_go() -> None:
    assert released([host(3), host(4, lifecycle="Terminating")], [IDLE]) == []


NUMBERS = st.integers(min_value=1, max_value=9)
STATES = st.sampled_from(
    ["pending", "running", "running", "running", "stopping", "stopped", "terminated"]
)
LIFECYCLES = st.sampled_from(["", "InService", "InService", "Standby", "Terminating:Wait"])
HOSTS = st.dictionaries(
    NUMBERS, st.tuples(NUMBERS, STATES, LIFECYCLES), min_size=0, max_size=9
).map(
    lambda made: [
        Host(
            f"app-{number}",
            "" if state == "terminated" else address(where),
            state,
            lifecycle,
            f"i-{number}",
        )
        for number, (where, state, lifecycle) in made.items()
    ]
)
ADMIN = st.sampled_from([0, 0, 0, DRAIN_BIT, MAINTENANCE_BIT])
SERVERS = st.dictionaries(
    NUMBERS, st.tuples(ADMIN, st.booleans(), st.integers(0, 1)), min_size=0, max_size=9
).map(
    lambda made: named(
        *(
            up(number, admin=admin, sessions=busy) if healthy else down(number, admin=admin)
            for number, (admin, healthy, busy) in made.items()
        )
    )
)
MEMORIES = st.builds(
    Memory,
    absences=st.dictionaries(NUMBERS.map(lambda n: f"app-{n}"), st.integers(1, 30)),
    instances=st.dictionaries(NUMBERS, NUMBERS).map(
        lambda found: {f"app-{n}": f"i-{i}" for n, i in found.items()}
    ),
    drained=st.dictionaries(NUMBERS, st.just(0)).map(
        lambda found: {f"app-{n}": address(n) for n in found}
    ),
)


@given(HOSTS, SERVERS, MEMORIES)
@settings(max_examples=400)
def test_no_answer_can_break_the_invariants(
    hosts: list[Host], servers: Mapping[str, Seen], memory: Memory
) -> None:
    decision = decide(hosts, servers, memory)
    by_kind = {k: [o.name for o in decision.orders if o.kind is k] for k in Kind}
    serving = {name for name, seen in servers.items() if seen.is_serving}
    most = max(1, len(servers) // 4)
    assert len(serving & set(by_kind[Kind.DRAIN])) <= most
    assert len(by_kind[Kind.DELETE]) <= most
    if serving:
        assert serving - set(by_kind[Kind.DRAIN]), "somebody serves on"
    assert not set(by_kind[Kind.ADD]) & set(servers)
    closed = {s.address for n, s in servers.items() if s.is_forced_out and n not in memory.drained}
    assert not closed & {order.address for order in decision.orders if order.kind is Kind.ADD}
    for name in by_kind[Kind.DELETE]:
        assert servers[name].is_forced_out
        assert servers[name].is_idle
    held = {n for n, s in servers.items() if s.is_forced_out and n not in memory.drained}
    assert not held & {*by_kind[Kind.DRAIN], *by_kind[Kind.RETURN]}
    for name in decision.memory.drained:
        assert name in memory.drained or name in by_kind[Kind.DRAIN]
    names = [order.name for order in decision.orders]
    assert len(names) == len(set(names))


@given(HOSTS, SERVERS, MEMORIES)
def test_only_the_end_of_its_own_instance_ends_a_server_at_once(
    hosts: list[Host], servers: Mapping[str, Seen], memory: Memory
) -> None:
    memory = replace(memory, absences={}, instances={})
    gone = [replace(one, state="terminated", address="") for one in hosts]
    decision = decide([*gone, host(50)], servers, memory)
    assert [order for order in decision.orders if order.kind is not Kind.ADD] == []


@given(SERVERS, MEMORIES)
def test_an_answer_without_a_host_to_serve_moves_nothing(
    servers: Mapping[str, Seen], memory: Memory
) -> None:
    leaving = [host(number, state="stopped") for number in range(1, 5)]
    assert decide([], servers, memory).orders == ()
    assert decide(leaving, servers, memory).orders == ()


def carried_out(servers: dict[str, Seen], decision: Decision) -> dict[str, Seen]:
    """What HAProxy has after the orders, with every check passed."""
    after = dict(servers)
    for order in decision.orders:
        number = int(order.address.rpartition(".")[2])
        match order.kind:
            case Kind.ADD | Kind.RETURN:
                after[order.name] = up(number, name=order.name)
            case Kind.DRAIN:
                after[order.name] = up(number, name=order.name, admin=DRAIN_BIT)
            case Kind.DELETE:
                del after[order.name]
    return after


@given(HOSTS.filter(lambda found: len({h.address or h.name for h in found}) == len(found)), SERVERS)
def test_it_comes_to_rest_with_a_server_for_each_host_that_is_to_serve(
    hosts: list[Host], servers: dict[str, Seen]
) -> None:
    servers = {name: up(int(name[4:])) for name in servers}
    memory = EMPTY
    for _ in range(60):
        decision = decide(hosts, servers, memory)
        memory, servers = decision.memory, carried_out(servers, decision)
    assert decision.orders == ()
    held = {seen.address for seen in servers.values() if not seen.is_serving}
    wanted = {h.name: h.address for h in hosts if h.is_wanted and h.address not in held}
    serving = {name: seen.address for name, seen in servers.items() if seen.is_serving}
    if wanted and not decision.notes:
        assert serving == wanted

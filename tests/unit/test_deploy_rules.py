"""The plan of a deploy over many fleets: who may leave rotation, and when not to begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import rotation
from flotilla.rules.deploy import (
    Host,
    Options,
    Plan,
    faults,
    floor,
    plan,
    spread,
    undo,
    why_too_few,
)
from flotilla.rules.rotation import Counters, Server

LBS = ("lb-1", "lb-2")


def server(name: str, status: str = "UP", **more: object) -> Server:
    values = {"check": "L7OK", "sessions": 0, "queued": 0} | more
    return Server(name=name, status=status, **values)  # type: ignore[arg-type]


def host(number: int, zone: str = "", status: str = "UP", version: str | None = "1") -> Host:
    name = f"app-{number}"
    return Host(
        name=name,
        zone=zone or "abc"[number % 3],
        version=version,
        active=version is not None,
        stale=False,
        views={lb: server(name, status) for lb in LBS},
    )


def seen_by(hosts: Sequence[Host]) -> dict[str, dict[str, Server]]:
    return {lb: {h.name: h.views[lb] for h in hosts if lb in h.views} for lb in LBS}


def planned(hosts: Sequence[Host], version: str = "2", options: Options | None = None) -> Plan:
    made = plan(hosts, version, options or Options())
    assert isinstance(made, Plan), made
    return made


fleets = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["UP", "UP", "UP", "UP 1/2", "DOWN", "DOWN 1/2"]),
        st.sampled_from(["1", "1", "2", None]),
    ),
    min_size=1,
    max_size=20,
).map(lambda rows: [host(n, *row[:2], row[2]) for n, row in enumerate(rows, 1)])

options = st.builds(
    Options,
    batches=st.sampled_from([("1",), ("1", "50%"), ("1", "3"), ("1", "25%", "100%")]),
    floor_percent=st.integers(1, 99),
)


@given(fleets, options)
def test_every_host_is_in_one_batch_or_skipped_with_a_reason(
    hosts: list[Host], chosen: Options
) -> None:
    made = plan(hosts, "2", chosen)
    if isinstance(made, str):
        return
    assert sorted([*made.hosts, *made.skipped]) == sorted(h.name for h in hosts)
    assert all(made.skipped.values())
    assert set(made.previous) == set(made.hosts)
    assert all(made.batches)


@given(fleets, options)
def test_no_batch_takes_more_serving_hosts_than_the_floor_allows(
    hosts: list[Host], chosen: Options
) -> None:
    made = plan(hosts, "2", chosen)
    serving = {h.name for h in hosts if h.is_serving}
    if isinstance(made, str):
        # Refused only when not even one host can go.
        assert len(serving) - floor(len(serving), chosen.floor_percent) < 1
        return
    for batch in made.batches:
        left = serving - set(batch)
        assert len(left) >= floor(len(serving), chosen.floor_percent)


@given(fleets, options)
def test_the_first_batch_is_one_host_and_it_serves_if_any_does(
    hosts: list[Host], chosen: Options
) -> None:
    made = plan(hosts, "2", chosen)
    if isinstance(made, str) or not made.batches:
        return
    assert len(made.batches[0]) == 1
    candidates = [h for h in hosts if h.name in made.hosts]
    canary = next(h for h in candidates if h.name == made.batches[0][0])
    assert canary.is_serving or not any(h.is_serving for h in candidates)


@given(fleets)
def test_a_fleet_that_runs_the_version_everywhere_is_left_alone(hosts: list[Host]) -> None:
    same = [replace(h, version="2") for h in hosts if h.is_serving]
    assert planned(same).batches == ()


def test_a_host_that_does_not_serve_is_deployed_again() -> None:
    hosts = [host(1, version="2"), host(2, status="DOWN", version="2"), host(3, version="2")]
    assert planned(hosts).hosts == ["app-2"]


def test_a_host_whose_settings_changed_is_deployed_again() -> None:
    hosts = [host(1, version="2"), replace(host(2, version="2"), stale=True), host(3, version="2")]
    assert planned(hosts).hosts == ["app-2"]


def test_three_hosts_go_one_by_one_and_half_of_six_at_a_time_across_zones() -> None:
    assert [len(b) for b in planned([host(n) for n in (1, 2, 3)]).batches] == [1, 1, 1]
    made = planned([host(n) for n in range(1, 7)])
    assert [len(b) for b in made.batches] == [1, 3, 2]
    zones = {h.name: h.zone for h in [host(n) for n in range(1, 7)]}
    assert len({zones[name] for name in made.batches[1]}) == 3


def test_an_empty_fleet_gets_its_first_release_after_a_canary_all_at_once() -> None:
    hosts = [host(n, status="DOWN", version=None) for n in range(1, 7)]
    assert [len(batch) for batch in planned(hosts).batches] == [1, 5]


def test_the_only_serving_host_is_taken_out_on_purpose_only() -> None:
    alone = [host(1)]
    assert "cannot be taken out" in str(plan(alone, "2", Options()))
    assert planned(alone, options=Options(outage=True)).hosts == ["app-1"]


def test_a_host_left_in_maintenance_stops_the_deploy_unless_it_is_adopted() -> None:
    hosts = [host(1), host(2, status="MAINT"), host(3)]
    said = faults(hosts, seen_by(hosts), Options())
    assert said == [
        "app-2 was taken out of rotation (MAINT on lb-1, MAINT on lb-2) and nobody brought it back"
    ]
    assert faults(hosts, seen_by(hosts), Options(adopt=True)) == []


def test_a_server_drained_on_one_load_balancer_only_is_noticed() -> None:
    odd = replace(host(2), views={"lb-1": server("app-2"), "lb-2": server("app-2", "DRAIN")})
    hosts = [host(1), odd, host(3)]
    assert "DRAIN on lb-2" in faults(hosts, seen_by(hosts), Options())[0]
    assert odd.is_serving, "lb-1 still gives it requests"


def test_load_balancers_that_disagree_stop_the_deploy_whatever_is_adopted() -> None:
    """Seen in the lab: one that had been frozen held every host for down, and all went at once."""
    hosts = [
        replace(h, views={"lb-1": server(h.name, "DOWN 1/2"), "lb-2": server(h.name)})
        for h in (host(1), host(2), host(3))
    ]
    for options in (Options(), Options(adopt=True)):
        said = faults(hosts, seen_by(hosts), options)
        assert said[0] == "app-1 is DOWN 1/2 on lb-1, UP on lb-2: the load balancers disagree"
    assert [len(batch) for batch in planned(hosts).batches] == [1, 1, 1]


def test_a_batch_waits_for_enough_others_that_every_load_balancer_has_up() -> None:
    hosts = [host(1), host(2), host(3)]
    assert why_too_few(seen_by(hosts), ["app-1"], 2) is None
    hosts[1] = replace(hosts[1], views={"lb-1": server("app-2"), "lb-2": server("app-2", "DOWN")})
    said = why_too_few(seen_by(hosts), ["app-1"], 2)
    assert said == "besides app-1 only app-3 would serve, and 2 must"
    assert why_too_few({}, ["app-1"], 0) is None


def test_load_balancers_that_know_other_hosts_stop_the_deploy() -> None:
    hosts = [host(1), host(2)]
    views = seen_by(hosts)
    del views["lb-2"]["app-2"]
    views["lb-1"]["app-9"] = server("app-9")
    assert faults(hosts, views, Options()) == [
        "lb-1 has the server app-9, which is no running host",
        "lb-2 does not know app-2",
    ]


def test_a_fleet_without_hosts_or_load_balancers_is_a_fault() -> None:
    assert faults([], {}, Options()) == [
        "there is no running application host",
        "there is no running load balancer",
    ]


@pytest.mark.parametrize(
    "bad",
    [
        Options(batches=("2", "50%")),
        Options(batches=()),
        Options(batches=("1", "0")),
        Options(batches=("1", "101%")),
        Options(batches=("1", "half")),
        Options(floor_percent=0),
        Options(floor_percent=100),
    ],
)
def test_sizes_that_mean_nothing_are_faults(bad: Options) -> None:
    assert faults([host(1), host(2)], seen_by([host(1), host(2)]), bad)


@given(st.lists(st.integers(1, 99), unique=True), st.integers(0, 5))
def test_undo_takes_every_finished_host_once_the_last_one_first(
    numbers: list[int], largest: int
) -> None:
    done = [f"app-{n}" for n in numbers]
    batches = undo(done, largest)
    assert [name for batch in batches for name in batch] == done[::-1]
    assert all(len(batch) <= max(1, largest) for batch in batches)


def test_the_load_keeps_more_hosts_in_rotation_than_the_floor_asks_for() -> None:
    hosts = [host(n) for n in range(1, 7)]
    made = plan(hosts, "2", Options(), needed=5)
    assert isinstance(made, Plan)
    assert (made.floor, [len(batch) for batch in made.batches]) == (5, [1] * 6)
    assert plan(hosts, "2", Options(), needed=6) == (
        "6 host(s) serve and 6 must stay in rotation, so app-3 cannot be taken out"
    )
    accepted = plan(hosts, "2", Options(outage=True), needed=6)
    assert isinstance(accepted, Plan)
    assert accepted.floor == 0


def test_zones_are_taken_in_turn_and_names_in_the_order_of_their_numbers() -> None:
    hosts = [host(n, zone) for n, zone in [(10, "a"), (9, "a"), (1, "b"), (2, "a")]]
    assert [h.name for h in spread(hosts)] == ["app-2", "app-1", "app-9", "app-10"]


def test_a_stale_check_result_or_a_server_on_its_way_down_does_not_pass() -> None:
    fit = {"lb-1": server("app-1", "DRAIN"), "lb-2": server("app-1", "DRAIN")}
    assert rotation.why_not_fit(fit) is None
    for status, check in [("DOWN", "L7OK"), ("DRAIN", "L7STS"), ("MAINT", ""), ("UP", "L7OK")]:
        late = fit | {"lb-2": server("app-1", status, check=check)}
        assert "lb-2" in str(rotation.why_not_fit(late))
    assert rotation.why_not_up({"lb-1": server("app-1", "UP 1/2")}) is not None
    assert rotation.why_not_up({}) == "no load balancer was asked"


def test_one_request_on_the_passive_load_balancer_keeps_a_host_busy() -> None:
    views = {"lb-1": server("app-1"), "lb-2": server("app-1", sessions=1)}
    assert rotation.why_not_idle(views) == "app-1 has 1 requests in flight and 0 queued on lb-2"


def test_counters_of_a_process_that_was_replaced_count_from_zero() -> None:
    assert Counters(120, 3).since(Counters(100, 1)) == Counters(20, 2)
    assert Counters(20, 1).since(Counters(100, 5)) == Counters(20, 1)
    assert Counters(1, 2, 3, 4, 5).plus(Counters(1, 1, 1, 1, 1)) == Counters(2, 3, 4, 5, 6)


def test_a_host_that_was_left_with_a_part_of_its_weight_is_not_left_alone() -> None:
    hosts = [host(1, version="2"), replace(host(2, version="2"), share=10.0), host(3, version="2")]
    assert planned(hosts).hosts == ["app-2"]


def test_a_host_that_one_load_balancer_still_holds_out_is_not_left_alone() -> None:
    """Commands that a load balancer was given while it hung are carried out once it goes on."""
    held = host(2, version="2")
    held = replace(held, views={**held.views, "lb-2": server("app-2", "DRAIN")})
    hosts = [host(1, version="2"), held, host(3, version="2")]
    assert not faults(hosts, seen_by(hosts), Options(adopt=True))
    assert planned(hosts).hosts == ["app-2"]


@pytest.mark.parametrize(
    ("status", "state", "forgot"),
    [
        ("UP", rotation.DRAINED, True),
        ("UP 1/2", rotation.DRAINED, True),
        ("DRAIN", rotation.DRAINED, False),
        ("DOWN", rotation.DRAINED, False),  # it was down when it was drained
        ("MAINT", rotation.MAINTENANCE, False),
        ("MAINT (via app/app-2)", rotation.MAINTENANCE, False),
        ("DOWN", rotation.MAINTENANCE, True),  # it would serve as soon as it is up
        ("DRAIN", rotation.MAINTENANCE, True),
    ],
)
def test_a_load_balancer_that_forgot_is_told_from_one_that_did_not(
    status: str, state: str, forgot: bool
) -> None:
    views = {"lb-1": server("app-1", state), "lb-2": server("app-1", status)}
    assert rotation.forgotten(views, state) == (["lb-2"] if forgot else [])


def test_a_share_is_read_back_from_every_load_balancer() -> None:
    assert rotation.why_not_share("app-1", {"lb-1": 10.0, "lb-2": 9.5}, 10) is None
    assert rotation.why_not_share("app-1", {"lb-1": 10.0, "lb-2": 100.0}, 10) == (
        "app-1 has 100% of its weight on lb-2, not 10%"
    )
    # With the default weight of 1, a tenth is nothing.
    assert rotation.why_not_share("app-1", {"lb-1": 0.0}, 10) is not None

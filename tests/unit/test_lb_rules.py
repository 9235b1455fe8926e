"""The load balancer pair: what is wrong with it, who may take over, what a drill of it shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.drill import lb as drill
from flotilla.errors import BadOption
from flotilla.rules import drill_lb, lb
from flotilla.rules.drill_fault import Aim, Ends
from flotilla.rules.drill_lb import FAULTS, Told
from flotilla.rules.lb import Member, Move

WELL = {"lb-1": Told("MASTER", is_fresh=True), "lb-2": Told("BACKUP", is_fresh=True)}


def test_a_pair_in_order_has_nothing_to_tell():
    assert drill_lb.disorder(["lb-1"], WELL) == ""
    assert lb.problems([Member("lb-1", True, True), Member("lb-2", True, False)]) == []


@pytest.mark.parametrize(
    ("owners", "change", "says"),
    [
        ([], {}, "with nobody"),
        (["lb-1", "lb-2"], {}, "with 'lb-1', 'lb-2'"),
        ([""], {}, "with ''"),
        (["lb-2"], {}, "lb-1 has not the address and is MASTER"),
        (["lb-1"], {"lb-2": Told("MASTER", is_fresh=True)}, "lb-2 has not the address"),
        (["lb-1"], {"lb-2": Told("FAULT", is_fresh=True)}, "is FAULT"),
        (["lb-1"], {"lb-2": Told("BACKUP")}, "nothing new to tell"),
        (["lb-1"], {"lb-2": Told(why="no answer")}, "cannot be asked: no answer"),
    ],
)
def test_whatever_is_out_of_order_is_named(owners, change, says):
    assert says in drill_lb.disorder(owners, WELL | change)


def test_who_is_away_by_the_fault_is_left_out_but_may_not_have_the_address():
    told = {"lb-1": Told(), "lb-2": Told("MASTER", is_fresh=True)}
    assert drill_lb.disorder(["lb-2"], told, but="lb-1") == ""
    assert "with lb-1" in drill_lb.disorder(["lb-1"], told, but="lb-1")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_fault_can_be_made_and_has_somebody_to_strike(fault):
    assert fault.name in drill.STRIKES
    aim = drill_lb.aim(fault, "lb-1", {"lb-1": "a", "lb-2": "b"})
    assert isinstance(aim, Aim)
    assert aim.target in {"lb-1", "lb-2", "a"}
    assert isinstance(drill_lb.aim(fault, "lb-1", {"lb-1": "a"}), str)


def test_a_zone_that_has_both_is_not_struck():
    assert "nobody would be left" in str(
        drill_lb.aim(FAULTS["zone"], "lb-1", {"lb-1": "a", "lb-2": "a"})
    )


RUN: dict[str, Any] = {
    "outage_seconds": 1.0,
    "served": 100,
    "failed": 3,
    "failed_beyond": 0,
    "retried": 0,
    "converged_seconds": 1.5,
    "ended_seconds": 20.0,
    "old": "lb-1",
    "new": "lb-2",
    "moves": ["lb-1", "lb-2"],
    "not_mended": "",
}


def traffic(gap: float, failed: int) -> dict[str, Any]:
    return {"gap_seconds": gap, "served": 900, "failed": failed, "retried": 0, "failures": {}}


@pytest.mark.parametrize(("failed", "beyond"), [(0, 0), (150, 0), (500, 300)])
def test_failures_that_no_outage_explains_are_told(failed, beyond):
    """Half of all connections failing is no outage: somebody is always served."""
    seen = drill_lb.Seen(
        traffic=traffic(1.0, failed),
        struck=0.0,
        ended=20.0,
        converged=1.0,
        old="lb-1",
        new="lb-2",
        rate=50,
        patience_seconds=1.0,
    )
    assert drill_lb.figures(seen)["failed_beyond"] == beyond


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"outage_seconds": 4.1}, "nobody was served for 4.10 s"),
        ({"served": 0}, "no request was served"),
        ({"failed_beyond": 7}, "7 requests failed beyond"),
        ({"converged_seconds": None}, "by itself"),
        ({"new": "lb-1"}, "still with lb-1"),
        ({"not_mended": "lb-1 cannot be asked"}, "put back"),
        ({"moves": ["lb-1", "lb-2", "lb-1", "lb-2"]}, "lb-1 -> lb-2 -> lb-1 -> lb-2"),
    ],
)
def test_a_broken_promise_is_named(change, says):
    fault = FAULTS["freeze"]
    assert drill_lb.broken(RUN, fault) == []
    (why,) = drill_lb.broken(RUN | change, fault)
    assert says in why


def test_who_may_stay_breaks_nothing_by_staying():
    stays = RUN | {"new": "lb-1"}
    for fault in FAULTS.values():
        assert bool(drill_lb.broken(stays, fault)) is (fault.ends is Ends.MOVED)


def test_the_median_of_all_runs_has_a_bar_of_its_own():
    fault = FAULTS["freeze"]
    over = drill_lb.over_all([RUN | {"outage_seconds": 2.5}] * 2)
    assert over["most_moves"] == 1
    assert "2.50 s" in drill_lb.broken_by_all(over, fault, 5)[0]
    assert drill_lb.broken_by_all(drill_lb.over_all([RUN]), fault, 5) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fault": "earthquake"}, "choose from: haproxy-kill"),
        ({"fault": "freeze", "runs": 0}, "is 1 to"),
        ({"fault": "freeze", "rate": 5}, "10 to 1000"),
    ],
)
def test_what_cannot_be_rehearsed_is_a_bad_option(options, says):
    with pytest.raises(BadOption, match=says):
        drill.Options(**options).demand()


MEMBERS = st.lists(
    st.builds(Member, st.sampled_from(["lb-1", "lb-2", "lb-3"]), st.booleans(), st.booleans()),
    max_size=3,
    unique_by=lambda one: one.name,
)


@given(members=MEMBERS, source=st.sampled_from([None, "lb-1", "lb-2", "lb-3"]))
def test_the_address_is_moved_only_from_who_has_it_and_only_to_who_could_serve(members, source):
    known = {one.name: one for one in members}
    if source is not None and source not in known:
        with pytest.raises(LookupError):
            lb.move(members, source)
        return
    found = lb.move(members, source)
    if isinstance(found, Move):
        assert known[found.source].is_owner
        assert source in {None, found.source}
        assert found.others
        assert all(known[name].is_fit and name != found.source for name in found.others)
    if found is None:
        assert source is not None
        assert next(one for one in members if one.is_owner).name != source


@given(members=MEMBERS)
def test_whatever_keeps_the_address_from_moving_is_a_problem_that_is_told(members):
    if isinstance(lb.move(members), str):
        assert lb.problems(members)

"""What remains of a deploy that was cut off, over every state that hosts can be found in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.deploy import Host, Plan
from flotilla.rules.resume import Story, back, forward, is_in_place, previous, story, why_not_open
from flotilla.rules.rotation import Server

NAMES = [f"app-{n}" for n in range(1, 7)]
PLAN = Plan(
    "2",
    batches=(("app-1",), ("app-2", "app-3"), ("app-4",)),
    previous={"app-1": "1", "app-2": "1", "app-3": "0", "app-4": None},
    floor=2,
    skipped={"app-5": "runs 2 already"},
)
STATES = ["UP", "DRAIN", "MAINT", "DOWN", "UP 1/2"]


def host(name: str, version: str | None, status: str = "UP") -> Host:
    views = {lb: Server(name, status, "L7OK", 0, 0) for lb in ("lb-1", "lb-2")}
    return Host(name, "a", version, active=version is not None, stale=False, views=views)


hosts = st.lists(
    st.builds(
        host, st.sampled_from(NAMES), st.sampled_from(["0", "1", "2", None]),
        st.sampled_from(STATES),
    ),
    unique_by=lambda one: one.name,
)  # fmt: skip
proved = st.frozensets(st.sampled_from(NAMES))


@given(hosts, proved)
def test_going_on_moves_every_host_that_is_not_in_place_exactly_once(
    here: list[Host], done: frozenset[str]
) -> None:
    left = forward(Story(PLAN, done), here)
    moved = left.plan.hosts
    assert len(moved) == len(set(moved))
    assert not set(moved) & set(left.done)
    for one in here:
        if not is_in_place(one, "2"):
            assert one.name in moved
        elif one.name in done:
            assert one.name not in moved
    assert set(moved) | set(left.done) <= {one.name for one in here}
    assert set(left.gone) == set(PLAN.hosts) - {one.name for one in here}


@given(hosts, proved)
def test_going_on_never_takes_more_at_once_than_the_plan_did(
    here: list[Host], done: frozenset[str]
) -> None:
    left = forward(Story(PLAN, done), here)
    assert all(len(batch) <= 2 for batch in left.plan.batches)
    canary = [name for name in PLAN.batches[0] if name in left.plan.hosts]
    assert not canary or left.plan.batches[0] == ("app-1",), "the canary is still the first"


@given(hosts)
def test_going_back_moves_every_host_that_does_not_have_what_it_had(here: list[Host]) -> None:
    left = back(Story(PLAN), here)
    for one in here:
        moved = one.name in left.done or one.name in left.out
        if one.name in PLAN.previous:
            right = is_in_place(one, PLAN.previous[one.name])
            assert moved != right
        if one.name in PLAN.skipped:
            assert not moved, "it had the new release before"
    assert not set(left.done) & set(left.out)


@given(hosts)
def test_going_back_takes_no_serving_host_out_before_its_turn(here: list[Host]) -> None:
    left = back(Story(PLAN), here)
    serving = {one.name for one in here if one.is_serving}
    for name in left.out:
        version = next(one.version for one in here if one.name == name)
        assert name not in serving or version == left.plan.previous[name]


def test_a_host_that_came_meanwhile_goes_back_to_what_most_had() -> None:
    here = [host("app-1", "2"), host("app-6", "2")]
    assert back(Story(PLAN), here).plan.previous["app-6"] == "1"


def test_a_host_with_a_part_of_its_weight_is_not_in_place() -> None:
    one = replace(host("app-1", "1"), share=10.0)
    assert not is_in_place(one, "1")
    assert back(Story(PLAN), [one]).out == {
        "app-1": "UP on lb-1, UP on lb-2, with 10% of its weight"
    }


def line(event: str, **fields: Any) -> dict[str, Any]:
    return {"at": "2026-01-01T00:00:00+00:00", "event": event, **fields}


def test_a_journal_tells_what_was_wanted_proved_and_how_far_it_went_back() -> None:
    lines = [
        line("begin", version="2", plan=PLAN.as_dict()),
        line("intent", host="app-1", step="drain"),
        line("proved", host="app-1"),
        line("proved", host="app-2"),
        line("intent", host="app-2", step="drain"),
    ]
    told = story(lines)
    assert told == Story(PLAN, frozenset({"app-1"}))
    assert why_not_open(told, "x") is None
    gone_back = story([*lines, line("going back", why="app-2: bad", failed=[], done=[])])
    assert gone_back is not None
    assert gone_back.going_back == "app-2: bad"


def test_only_a_deploy_without_an_end_or_one_that_stopped_is_open() -> None:
    begun = line("begin", version="2", plan=PLAN.as_dict())
    for result, is_open in [("done", False), ("rolled back", False), ("stopped", True)]:
        told = story([begun, line("end", result=result)])
        assert (why_not_open(told, "x") is None) == is_open
    again = story([begun, line("end", result="stopped"), line("resumed", verb="abort")])
    assert again is not None
    assert again.result == ""
    assert why_not_open(story([line("stage", hosts=[])]), "x") is not None


def test_the_release_before_is_what_most_hosts_had() -> None:
    done = Story(PLAN, result="done")
    assert previous([done], {"2"}, [{"0", "1", "2"}]) == ["1"]
    assert previous([Story(PLAN, result="rolled back")], {"1"}, [{"1", "2"}]) == ["2"]
    assert previous([], {"2"}, [{"1", "2"}, {"2", "0", "1"}]) == ["1"]
    assert previous([done], {"1", "2"}, [{"0", "1", "2"}]) == ["0"]


def test_a_journal_that_another_version_wrote_tells_no_story_and_stops_nobody() -> None:
    """A rollback reads all of them: one without a floor made it fail."""
    whole = PLAN.as_dict()
    for missing in ("version", "batches", "previous", "floor"):
        plan = {name: value for name, value in whole.items() if name != missing}
        assert story([line("begin", version="2", by="me", plan=plan)]) is None
    assert story([line("begin", version="2", by="me", plan=None)]) is None
    assert story([line("begin", version="2", by="me", plan={**whole, "floor": "many"})]) is None
    assert story([line("begin", version="2", by="me", plan=whole)]) is not None

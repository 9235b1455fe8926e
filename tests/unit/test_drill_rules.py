"""The figures of a drill, and which promises a run broke."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import drill
from flotilla.rules.tally import Tally


def seen(before: float = 0.01, during: float = 0.015, failed: int = 0) -> dict[str, Any]:
    """The report of clients, made by the tally that makes the real one."""
    tally = Tally(["close", "post"], 0.0)
    for phase, latency in ((drill.BEFORE, before), (drill.DURING, during), (drill.AFTER, before)):
        tally.mark(phase, 0.0)
        for number in range(100):
            tally.sent("close", phase, 0.001)
            tally.served("close", phase, number / 10, latency)
    tally.phase = drill.DURING
    for _ in range(failed):
        tally.failed("post", drill.DURING, "post: status 502")
    return tally.report(30.0) | {"acked": 7, "lost": 0, "cookies": {}}


def ended(result: str = "done", **more: Any) -> dict[str, Any]:
    steps = {"app-1": {"drain": 1.0}}
    return {"version": "b", "result": result, "seconds": 12.5, "steps": steps, "reason": ""} | more


def run(result: str = "done", failed: int = 0, lost: int = 0, **more: Any) -> dict[str, Any]:
    made = drill.figures(seen(failed=failed), ended(result, **more), 14.0)
    return made | {"lost": lost}


@pytest.mark.parametrize(
    ("latency", "failed", "why"),
    [
        (0.01, 0, None),
        (0.2, 0, None),
        (0.3, 0, "half of 300 requests took longer than"),
        (0.01, 2, "2 of 302 requests failed"),
    ],
)
def test_a_fleet_that_does_not_keep_up_is_not_drilled(latency, failed, why) -> None:
    told = drill.overload(seen(latency, latency, failed))
    assert told is None if why is None else told.startswith(why)


def test_a_fleet_that_answers_nobody_does_not_keep_up() -> None:
    assert drill.overload({"served": 0, "failed": 0, "p50_ms": None})


def test_a_run_tells_what_clients_saw_before_during_and_after() -> None:
    told = run()
    assert (told["served"], told["failed"], told["acked"]) == (300, 0, 7)
    assert told["p99_ms"] == {"before": 10.0, "during": 15.0, "after": 10.0}
    assert told["late_ms"]["during"] == 1.0
    assert told["kinds"]["close"]["p99_ms"]["during"] == 15.0
    assert (told["seconds"], told["wall_seconds"]) == (12.5, 14.0)


def test_over_all_runs_counts_are_added_and_times_have_a_median_and_a_worst() -> None:
    runs = [run(), run(failed=2, seconds=20.0), run(seconds=13.0)]
    told = drill.over_all(runs)
    assert (told["served"], told["failed"], told["acked"]) == (900, 2, 21)
    assert told["failures"] == {"post: status 502": 2}
    assert told["seconds"] == {"median": 13.0, "worst": 20.0}
    assert told["p99_ms"]["during"] == {"median": 15.0, "worst": 15.0}
    assert told["p99_ratio"] == {"median": 1.5, "worst": 1.5}


def test_a_run_that_never_got_to_a_phase_has_no_figure_for_it_and_breaks_no_sum() -> None:
    cut = drill.figures({**seen(), "phases": {}}, ended("refused", reason="locked"), 1.0)
    assert drill.over_all([cut])["p99_ms"]["before"] == {"median": None, "worst": None}
    assert drill.over_all([cut])["p99_ratio"] == {"median": None, "worst": None}


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=30))
def test_the_worst_is_never_better_than_the_median(values: list[float]) -> None:
    told = drill.spread(values)
    assert told["median"] is not None
    assert told["worst"] is not None
    assert told["worst"] >= told["median"]


def test_a_deploy_that_went_well_broke_nothing() -> None:
    assert drill.broken(run(), None) == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"failed": 1}, "1 requests failed"),
        ({"lost": 1}, "entries are gone"),
        ({"result": "rolled back"}, "rolled back"),
        ({"result": "refused"}, "refused"),
    ],
)
def test_a_promise_that_is_not_kept_is_named(wrong: dict[str, Any], word: str) -> None:
    told = drill.broken(run(**wrong), None)
    assert len(told) == 1
    assert word in told[0]


@pytest.mark.parametrize("fault", drill.FAULTS.values(), ids=drill.FAULTS)
def test_an_acknowledged_entry_may_be_lost_under_no_fault(fault: drill.Fault) -> None:
    (result, *_) = sorted(fault.ends)
    assert drill.broken(run(result=result), fault) == []
    assert drill.broken(run(result=result, lost=1), fault)


@pytest.mark.parametrize("fault", drill.FAULTS.values(), ids=drill.FAULTS)
def test_only_a_fault_that_itself_ends_requests_may_be_felt(fault: drill.Fault) -> None:
    (result, *_) = sorted(fault.ends)
    assert bool(drill.broken(run(result=result, failed=3), fault)) is not fault.is_felt


def test_a_bad_release_must_be_taken_back_soon_and_from_one_host_only() -> None:
    fault = drill.FAULTS["never-healthy"]
    assert drill.broken(run(result="rolled back"), fault) == []
    assert drill.broken(run(result="rolled back", seconds=31.0), fault)
    assert drill.broken(run(result="rolled back", steps={"app-1": {}, "app-2": {}}), fault)
    assert drill.broken(run(result="done"), fault), "a bad release that stays is no success"

"""What a deploy does when something goes wrong on its way, on a fleet in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from deploy_model import Model

from flotilla.deploy import Conduct
from flotilla.deploy.journal import read
from flotilla.deploy.late import joined


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Four hosts on version 1 behind two load balancers; a canary gets 10% first."""
    return Model(tmp_path)


def switched(model: Model, version: str = "2") -> list[str]:
    """The hosts that were switched to it, in order."""
    return [t.split()[1] for t in model.done_things if t.endswith(f"switch {version}")]


def test_the_canary_gets_a_tenth_then_all_and_everybody_ends_with_all(model: Model) -> None:
    seen: list[tuple[str, int]] = []
    for lb in model.balancers.values():
        model.events["write intent app-1 soak at 10%"] = lambda: seen.extend(
            (one.servers["app-1"].status, one.servers["app-1"].weight)
            for one in model.balancers.values()
        )
        assert lb.servers["app-1"].weight == 100
    assert model.deploy().result == "done"
    assert seen == [("UP", 10), ("UP", 10)]
    assert model.faults("2") == []


def test_only_the_canary_is_given_a_part(model: Model) -> None:
    model.deploy()
    assert {t.split()[2] for t in model.done_things if "soak at" in t} == {"app-1"}


def test_a_release_that_begins_to_fail_is_seen_by_the_canary_only(model: Model) -> None:
    for host in model.hosts.values():
        host.fails_after["2"] = 2.0
    outcome = model.deploy()
    assert outcome.result == "rolled back"
    assert "failed" in outcome.reason
    assert "the other hosts 0 of" in outcome.reason
    assert switched(model) == ["app-1"]
    assert outcome.seconds <= 30
    assert outcome.soak["app-1"]["errors"] > 0
    assert model.faults("1") == []


def test_a_release_that_fails_after_its_own_soak_is_found_by_the_next_ones(model: Model) -> None:
    """Nobody else fails; the canary was judged fit long ago."""

    def begin_to_fail() -> None:
        model.hosts["app-1"].fails_after["2"] = 0.0

    model.events["write intent app-2 soak"] = begin_to_fail
    outcome = model.deploy()
    assert outcome.result == "rolled back"
    assert "app-1 failed" in outcome.reason
    assert model.faults("1") == []


def test_a_canary_that_fails_when_all_have_the_release_takes_them_all_back(model: Model) -> None:
    def begin_to_fail() -> None:
        model.hosts["app-1"].fails_after["2"] = 0.0

    model.events["write intent app-4 soak"] = begin_to_fail
    outcome = model.deploy()
    assert outcome.result == "rolled back"
    assert "app-1 failed" in outcome.reason
    assert model.faults("1") == []


def test_a_load_balancer_that_was_started_again_is_told_again_before_a_host_is_stopped(
    model: Model,
) -> None:
    """It comes back with every server UP, in the moment in which the host is seen idle.

    The canary's: in a later batch another host may be down already, and that nobody could help.
    """
    lost = model.balancers["lb-2"]
    model.events["lb-1 set server app/app-1 state maint"] = lost.started_again
    outcome = model.deploy()
    assert outcome.result == "done"
    assert model.faults("2") == []


@pytest.mark.parametrize(
    "moment", ["call app-2 switch 2", "write intent app-2 ready on the host"], ids=str
)
def test_a_load_balancer_started_again_while_a_host_is_down_is_told_again(
    model: Model, moment: str
) -> None:
    lost = model.balancers["lb-2"]
    model.events[moment] = lost.started_again
    outcome = model.deploy()
    assert outcome.result == "done"
    for balancer in model.balancers.values():
        balancer.wrong.clear()  # until it was told again, nobody could help it
    assert model.faults("2") == []


def test_a_canary_keeps_its_part_on_a_load_balancer_that_was_started_again(model: Model) -> None:
    lost = model.balancers["lb-2"]
    model.events["write intent app-1 soak at 10%"] = lost.started_again
    assert model.deploy().result == "done"
    again = [t for t in model.done_things if t == "lb-2 set server app/app-1 weight 10%"]
    assert len(again) == 2, "once before it returned and once when the part was lost"


def test_a_host_that_does_not_answer_any_more_stays_out_and_the_others_go_back(
    model: Model,
) -> None:
    model.events["call app-2 switch 2"] = lambda: setattr(model.hosts["app-2"], "silent", True)
    outcome = model.deploy()
    assert outcome.result == "stopped"
    assert list(outcome.left) == ["app-2"]
    assert "stays out of rotation" in outcome.left["app-2"]
    assert [h.version for h in model.hosts.values()] == ["1", "1", "1", "1"]
    for balancer in model.balancers.values():
        assert balancer.servers["app-2"].status == "MAINT"
        assert balancer.servers["app-1"].status == "UP"


def test_abort_brings_the_others_back_while_a_host_does_not_answer(model: Model) -> None:
    model.hosts["app-3"].broken.add("2")
    model.deploy(conduct=Conduct(on_failure="stop"))
    model.hosts["app-3"].silent = True
    outcome = model.recover(back=True)
    assert outcome.result == "stopped"
    assert list(outcome.left) == ["app-3"]
    others = [host for host in model.hosts.values() if host.name != "app-3"]
    assert {host.version for host in others} == {"1"}


def test_on_failure_stop_leaves_everything_and_names_it_until_resume(model: Model) -> None:
    bad = model.hosts["app-3"]
    bad.broken.add("2")
    outcome = model.deploy(conduct=Conduct(on_failure="stop"))
    assert outcome.result == "stopped"
    assert outcome.left["app-1"] == "runs 2"
    assert "not ready" in outcome.left["app-3"]
    bad.broken.clear()
    assert model.recover(back=False).result == "done"
    assert model.faults("2") == []


def test_on_failure_stop_takes_a_host_that_failed_its_soak_out(model: Model) -> None:
    model.hosts["app-1"].fails_after["2"] = 1.0
    outcome = model.deploy(conduct=Conduct(on_failure="stop"))
    assert outcome.result == "stopped"
    assert list(outcome.left) == ["app-1"]
    for balancer in model.balancers.values():
        assert balancer.servers["app-1"].status == "MAINT"
    assert model.recover(back=True).result == "rolled back"
    assert model.faults("1") == []


def test_a_second_failure_stops_and_names_what_is_left(model: Model) -> None:
    model.hosts["app-3"].broken |= {"1", "2"}
    model.hosts["app-3"].ready_at = 0
    outcome = model.deploy()
    assert outcome.result == "stopped"
    assert {"app-1", "app-3"} <= set(outcome.left)


@pytest.mark.parametrize(
    ("conduct", "why"),
    [(Conduct(budget=8), "longer than 8 s"), (Conduct(progress=1.2), "no step was finished")],
)
def test_a_deploy_that_takes_too_long_goes_back(model: Model, conduct: Conduct, why: str) -> None:
    outcome = model.deploy(conduct=conduct)
    assert outcome.result == "rolled back"
    assert why in outcome.reason
    assert model.faults("1") == []


def hold(model: Model, sessions: int = 2) -> Callable[[], None]:
    """Clients that never let go of app-1, as websockets do."""

    def held() -> None:
        model.balancers["lb-1"].servers["app-1"].sessions = sessions

    return held


def test_sessions_that_do_not_end_abort_the_host(model: Model) -> None:
    model.events["write batch"] = hold(model)
    outcome = model.deploy()
    assert outcome.result == "rolled back"
    assert "2 requests in flight" in outcome.reason
    assert switched(model) == []
    assert model.faults("1") == []


def test_sessions_that_do_not_end_are_cut_and_counted(model: Model) -> None:
    model.limits = replace(model.limits, drain_overrun="cut")
    model.events["write batch"] = hold(model)
    outcome = model.deploy()
    assert outcome.result == "done"
    assert outcome.cut == 2
    assert outcome.failed == 2
    assert "2 cut off" in outcome.line
    assert model.faults("2") == []


def test_sessions_that_do_not_end_are_waited_for_until_progress_is_missed(model: Model) -> None:
    model.limits = replace(model.limits, drain_overrun="wait")
    model.events["write batch"] = hold(model)
    outcome = model.deploy(conduct=Conduct(progress=60))
    assert outcome.result == "rolled back"
    assert "no step was finished in 60 s" in outcome.reason
    assert model.faults("1") == []


def test_going_back_keeps_the_floor(model: Model) -> None:
    """app-4 is lost when app-3 fails: three of four must serve, so nobody else may leave."""
    model.hosts["app-3"].broken.add("2")

    def lose() -> None:
        model.hosts["app-4"].ready_at = float("inf")

    model.events["call app-3 switch 2"] = lose
    outcome = model.deploy(floor=75)
    assert outcome.result == "stopped"
    assert any("must" in why for why in outcome.left.values())


def test_a_load_balancer_that_stops_answering_leaves_no_host_out_on_the_others(
    model: Model,
) -> None:
    def freeze() -> None:
        model.balancers["lb-2"].silent = True

    model.events["write intent app-2 drain"] = freeze
    outcome = model.deploy()
    assert outcome.result == "stopped"
    assert "lb-2" in " ".join(outcome.left.values())
    assert all(s.status == "UP" for s in model.balancers["lb-1"].servers.values())


def test_a_load_balancer_lost_between_batches_stops_with_the_names_and_all_serve(
    model: Model,
) -> None:
    """It may serve on, unseen: a host that it was not told about must not be stopped."""

    def lose() -> None:
        model.balancers["lb-2"].silent = True

    model.events["write proved app-1"] = lose
    outcome = model.deploy()
    assert outcome.result == "stopped"
    assert "lb-2" in outcome.left["app-1"]
    assert switched(model, "1") == []
    assert all(s.status == "UP" for s in model.balancers["lb-1"].servers.values())
    model.balancers["lb-2"].silent = False
    assert model.recover(back=True).result == "rolled back"
    assert model.faults("1") == []


def test_intentions_are_written_before_steps(model: Model) -> None:
    model.deploy()
    lines = [line for line in read(model.journal.path) if line["event"] in {"intent", "step"}]
    by_host: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        by_host.setdefault(line["host"], []).append((line["event"], line["step"]))
    for told in by_host.values():
        assert told[::2] == [("intent", step) for _, step in told[1::2]]


def test_a_host_that_comes_meanwhile_is_waited_for_until_every_load_balancer_knows_it(
    model: Model,
) -> None:
    host, began = model.hosts["app-4"], model.clock()
    host.version = None
    server = model.balancers["lb-2"].servers.pop("app-4")

    def sleep(seconds: float) -> None:
        model.clock.sleep(seconds)
        if model.clock() > began + 5:
            host.version = "1"
        if model.clock() > began + 10:
            model.balancers["lb-2"].servers["app-4"] = server

    assert joined(model.world, "app-4", clock=model.clock, sleep=sleep) == "1"
    assert model.clock() > began + 10
    host.silent = True
    assert joined(model.world, "app-4", clock=model.clock, sleep=sleep) is None

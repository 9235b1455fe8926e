"""Operators that are killed, that hang and come back, and two of them at once."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

import pytest
from guests import needs_lab, until
from rolling import Rolling
from typed import KILL, STOP, fab

pytestmark = [needs_lab, pytest.mark.drill]


@dataclass(frozen=True)
class Cut:
    """When an operator's process is killed, and what is done about it."""

    name: str
    moment: str
    answer: str
    delay: float | None = None


# Every change of a deploy, from before the first to after the last; half of them are gone on with.
CUTS = [
    Cut("before-staging", r"after write begin", "resume"),
    Cut("staged", r"after call \S+ stage .*", "abort"),
    Cut("migrated", r"after call \S+ migrate .*", "resume"),
    Cut("draining", r"after order \S+ state drain", "abort"),
    Cut("idle", r"before order \S+ state maint", "resume"),
    Cut("in-maintenance", r"after order \S+ state maint", "abort"),
    Cut("switching", r"before call \S+ switch .*", "resume", delay=0.15),
    Cut("switched", r"after call \S+ switch .*", "abort"),
    Cut("ready-on-the-host", r"after call \S+ wait .*", "resume"),
    Cut("being-checked", r"after order \S+ .*health down", "abort"),
    Cut("checked", r"before order \S+ state ready", "resume"),
    Cut("returned", r"after order \S+ state ready", "abort"),
    Cut("weighed", r"after order \S+ weight 100%", "resume"),
    Cut("soaking", r"after write intent \S+ soak.*", "abort"),
    Cut("canary-done", r"after write proved \S+", "resume"),
    Cut("pruning", r"before call \S+ prune", "abort"),
    Cut("before-the-end", r"before write end", "resume"),
]


# One of each kind of moment: before hosts are touched, while one is out, after it came back.
SOONEST = {"staged", "switching", "switched", "returned"}


def _case(cut: Cut) -> Any:
    marks = () if cut.name in SOONEST else (pytest.mark.thorough,)
    return pytest.param(cut, id=f"{cut.name}-{cut.answer}", marks=marks)


@pytest.mark.parametrize("cut", [_case(cut) for cut in CUTS])
def test_an_operator_killed_at_any_step_costs_no_client_anything(fleet: Rolling, cut: Cut) -> None:
    before, wanted = fleet.version, fleet.other
    with fleet.clients() as clients:
        with fleet.deploying(cut.moment, KILL, delay=cut.delay) as run:
            code, _, said = run.ends()
        assert code == -signal.SIGKILL, f"the moment never came\n{said}"
        outcome = fab(f"deploy.{cut.answer}", "--take-over", "--yes")
        clients.saw_nothing()
    assert outcome["failed"] == 0
    fleet.is_whole(wanted if cut.answer == "resume" else before)


def test_an_interrupted_deploy_takes_everything_back(fleet: Rolling) -> None:
    with (
        fleet.clients() as clients,
        fleet.deploying(r"after order \S+ state maint", "kill -INT $PPID") as run,
    ):
        run.exits(99)
        clients.saw_nothing()
    fleet.is_whole(fleet.version)


def test_a_second_operator_is_refused_and_told_who_is_at_work(fleet: Rolling) -> None:
    """Both are real; the first one goes on as if nobody had come."""
    with (
        fleet.clients() as clients,
        fleet.deploying(r"after order \S+ state maint", STOP) as first,
    ):
        with first.paused():
            told = fleet.deploy(code=3)
        outcome = first.exits(0)
        clients.saw_nothing()
    assert f":{first.process.pid}" in told["error"]["what"]
    assert outcome["result"] == "done"
    fleet.is_whole(fleet.other)


def test_an_operator_who_comes_back_after_a_take_over_changes_nothing_any_more(
    fleet: Rolling,
) -> None:
    with (
        fleet.clients() as clients,
        fleet.deploying(r"after order \S+ state maint", STOP) as first,
    ):
        with first.paused():
            outcome = fab("deploy.abort", "--take-over", "--yes")
        code, _, said = first.ends()
        clients.saw_nothing()
    assert outcome["failed"] == 0
    assert code in {2, 3}, said
    assert "no longer" in said
    fleet.is_whole(fleet.version)


def test_a_lock_whose_holder_died_is_free_again_by_itself(fleet: Rolling) -> None:
    with fleet.clients() as clients:
        with fleet.deploying(r"after order \S+ state maint", KILL) as run:
            run.ends()
        told = fab("deploy.resume", "--yes", code=3)
        assert "--take-over" in told["error"]["next"]
        until(lambda: not fleet.is_locked(), 80, "the lock is free")
        fab("deploy.resume", "--yes")
        clients.saw_nothing()
    fleet.is_whole(fleet.other)

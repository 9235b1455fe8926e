"""Where a drill may run without a question, and where it may break things from outside."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fabfile import drill
from flotilla import environment
from flotilla.errors import BadOption, Refused
from lab import control

AGAIN = "fab drill.mysql --fault kill --env-confirmed production"


def settings(env: str, endpoint: str | None = None) -> Any:
    return SimpleNamespace(env=env, aws=SimpleNamespace(endpoint_url=endpoint))


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))


def test_the_lab_is_there_to_be_broken() -> None:
    drill._meant(settings(environment.DEFAULT), "the plan", "", "mysql", yes=False)


def test_another_environment_has_to_be_named_on_purpose() -> None:
    with pytest.raises(Refused) as refused:
        drill._meant(settings("production"), "the plan", "", AGAIN, yes=False)
    assert refused.value.next == f"{AGAIN} --yes"
    drill._meant(settings("production"), "the plan", "production", AGAIN, yes=False)
    drill._meant(settings("production"), "the plan", "", AGAIN, yes=True)


def test_a_name_that_is_not_the_environment_in_force_is_no_confirmation() -> None:
    with pytest.raises(BadOption, match="staging"):
        drill._meant(settings("production"), "the plan", "staging", AGAIN, yes=True)


def test_faults_of_the_lab_strike_only_a_fleet_that_is_run_with_the_labs_api() -> None:
    assert drill._outside(settings("lab", control.ENDPOINT)) is not None
    assert drill._outside(settings("production")) is None

"""What may keep an exchange of hosts from beginning, and who hears how it ended."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fleets import maker
from moto import mock_aws

from flotilla import audit
from flotilla.errors import HostFailed, Refused
from flotilla.replace import policy
from flotilla.replace.options import Options
from flotilla.replace.outcome import Outcome
from flotilla.rules.replace import Plan
from flotilla.settings import Settings
from flotilla.settings_deploy import Freeze, Windows

PLAN = Plan(
    role="app",
    image_id="ami-2",
    image_name="flotilla-app-2",
    previous_image="ami-1",
    previous_version="1",
    desired=3,
    most=2,
    old=("app-1",),
)
GOES_ON = Plan(**{name: getattr(PLAN, name) for name in PLAN.__slots__} | {"continues": "run-1"})
FAIL = [sys.executable, "-c", "raise SystemExit('the ticket is not approved')"]
NOTE = [sys.executable, "-c", "import os; open('seen', 'a').write(os.environ['FLOTILLA_OUTCOME'])"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        yield maker(tmp_path)().settings


def changed(settings: Settings, **sections: Any) -> Settings:
    section = settings.deploy.model_copy(update=sections)
    made = settings.model_copy(update={"deploy": section})
    return made.placed(settings.root, settings.digest)


def frozen(settings: Settings) -> Settings:
    now = datetime.now(UTC)
    window = Freeze.model_validate(
        {"from": f"{now:%Y}-01-01 00:00", "to": "2999-01-01 00:00", "reason": "the year's end"}
    )
    return changed(settings, windows=Windows(timezone="UTC", freeze=(window,)))


def hooked(settings: Settings, **commands: list[list[str]]) -> Settings:
    return changed(settings, hooks=settings.deploy.hooks.model_copy(update=commands))


def done() -> Outcome:
    return Outcome("run-2", "app", "flotilla-app-2", "done", 1.0)


def test_in_a_freeze_window_nothing_new_begins_without_a_reason(settings):
    closed = frozen(settings)
    with pytest.raises(Refused, match="the year's end") as refused:
        policy.demand_open(closed, PLAN, Options())
    assert "fab deploy.image --role app --override-freeze REASON" in refused.value.next
    policy.demand_open(closed, PLAN, Options(override_freeze="the shop is down"))
    policy.demand_open(settings, PLAN, Options())


@pytest.mark.parametrize(("plan", "options"), [(GOES_ON, Options()), (PLAN, Options(back=True))])
def test_what_was_begun_may_be_brought_to_an_end_whatever_forbids_a_beginning(
    settings, plan, options
):
    strict = hooked(frozen(settings), before=[FAIL])
    policy.demand_open(strict, plan, options)
    assert policy.attended(strict, plan, options, done).result == "done"


def test_an_override_is_in_the_audit_line_with_its_reason(settings):
    options = Options(override_freeze="the shop is down", reason="ticket 3")
    policy.attended(frozen(settings), PLAN, options, done)
    line = json.loads(list(audit.lines(settings))[-1])
    assert line["why"] == "ticket 3"
    assert line["freeze"]["overridden_because"] == "the shop is down"


def test_a_hook_that_forbids_it_is_asked_before_anything_is_done(settings):
    def never() -> Outcome:
        pytest.fail("it began all the same")

    with pytest.raises(Refused, match="the ticket is not approved"):
        policy.attended(hooked(settings, before=[FAIL]), PLAN, Options(), never)


def test_the_hook_behind_it_hears_of_every_end(settings):
    told = hooked(settings, after=[NOTE])

    def fails() -> Outcome:
        raise HostFailed("app-9 never came")

    policy.attended(told, PLAN, Options(), done)
    with pytest.raises(HostFailed):
        policy.attended(told, PLAN, Options(), fails)
    assert (settings.root / "seen").read_text() == "donefailed"

"""What a command says of the fleet when somebody stops answering: before the plan, and after."""

from __future__ import annotations

import json

import pytest
from fleets import maker
from invoke.exceptions import Exit
from moto import mock_aws

from fabfile import _operator
from flotilla.errors import Unreachable
from flotilla.mysql.recorded import LOOK_AGAIN, recorded


def away() -> None:
    raise Unreachable("could not write: the AWS API does not answer", next="fab lab.status")


@pytest.fixture
def settings(tmp_path):
    with mock_aws():
        yield maker(tmp_path)().settings


@pytest.fixture(autouse=True)
def nothing_agreed(monkeypatch):
    monkeypatch.setattr(_operator, "_confirmed", [])


def told(capsys, act):
    with pytest.raises(Exit) as ended:
        _operator.attempt(act, json=True)
    assert ended.value.code == 4
    return json.loads(capsys.readouterr().out)["error"]["untouched"]


def test_before_a_plan_is_agreed_to_nothing_was_changed(capsys):
    assert told(capsys, away) == "Nothing was changed"


def test_after_that_no_such_thing_is_claimed(capsys):
    def act():
        _operator.confirm("terminate everything", yes=True, again="fab x")
        away()

    assert told(capsys, act) == ""


@pytest.mark.parametrize(
    ("titles", "said"),
    [
        ([], "Nothing was changed"),
        ([LOOK_AGAIN], "Nothing was changed"),
        ([LOOK_AGAIN, "close mysql-1"], "Cut off at 'close mysql-1'"),
    ],
)
def test_a_recorded_command_names_the_step_it_was_cut_off_at(settings, titles, said):
    def run():
        with recorded(settings, "fab mysql.x", str) as steps:
            for title in titles[:-1]:
                with steps.step(title):
                    pass
            for title in titles[-1:]:
                with steps.step(title):
                    away()
            away()

    with pytest.raises(Unreachable) as raised:
        run()
    assert raised.value.untouched.startswith(said)

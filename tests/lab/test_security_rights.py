"""What hosts did at AWS in this lab, against what they may: conftest.py has this run last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guests import control, needs_lab
from security import rights
from security.rights import Used
from security.test_rights import EXCUSED, POLICIES

from flotilla.settings import Settings

pytestmark = needs_lab

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def calls(standing_fleet: Settings) -> list[tuple[Used, int]]:
    log = Path(control("status")["repo"], "var/lab/log/api.jsonl")
    with log.open() as lines:
        found = list(rights.calls(map(json.loads, lines), standing_fleet.prefix))
    assert found, f"no host has called anything, by {log}"
    return found


def test_no_host_was_refused_a_call_or_would_be_at_aws(calls: list[tuple[Used, int]]) -> None:
    assert rights.refusals(calls, rights.permitted(POLICIES)) == []


@pytest.mark.drill
def test_every_right_of_a_host_was_used(
    calls: list[tuple[Used, int]], request: pytest.FixtureRequest
) -> None:
    ran = {item.path.name for item in request.session.items}
    drills = {p.name for p in HERE.glob("test_*.py") if "pytest.mark.drill" in p.read_text()}
    if drills - ran:
        pytest.skip(f"not a full run ({len(drills - ran)} files of drills left out): make drills")
    excused = {Used(role, entry["action"]) for entry in EXCUSED for role in entry["roles"]}
    did = {one for one, _ in calls}
    assert rights.unused(rights.permitted(POLICIES), did, excused) == []

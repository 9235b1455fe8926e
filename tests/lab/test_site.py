"""site.yml on the standing fleet: a second run changes nothing, and who is primary is none of its
business.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest
from guests import needs_lab
from typed import fab

from flotilla.aws import edge
from flotilla.settings import Settings

pytestmark = needs_lab


def changed(run: dict[str, Any]) -> dict[str, int]:
    """Changed tasks by host, where there are any."""
    return {host: counts["changed"] for host, counts in run["hosts"].items() if counts["changed"]}


@pytest.fixture(scope="module")
def moved(standing_fleet: Settings) -> dict[str, Any]:
    """The fleet, configured a moment ago, whose MySQL primary has just moved."""
    return fab("mysql.switchover", "--yes")


def test_a_switchover_under_writers_loses_nothing_and_takes_less_than_a_second(
    moved: dict[str, Any],
) -> None:
    assert moved["acked"] > 0
    assert moved["lost"] == 0
    assert moved["write_gap_seconds"] < 1


def test_after_a_switchover_a_second_run_changes_nothing(moved: dict[str, Any]) -> None:
    assert changed(fab("fleet.configure", "--yes")) == {}
    assert fab("mysql.status")["primary"] == moved["new"]


@pytest.mark.drill
def test_a_check_of_a_converged_fleet_is_silent(moved: dict[str, Any]) -> None:
    assert changed(fab("fleet.configure", "--check")) == {}


def test_the_application_serves_through_the_edge(
    moved: dict[str, Any], standing_fleet: Settings
) -> None:
    with urllib.request.urlopen(f"{edge.url(standing_fleet)}/readyz", timeout=5) as answer:
        assert json.load(answer)["ready"] is True

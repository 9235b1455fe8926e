"""Rolling deploys on the standing fleet (make demo brings it up), as an operator types them.

Judged by clients of the edge address: pages, sessions, slow requests, and entries whose every
acknowledgement is checked afterwards. What goes wrong meanwhile is in test_deploy_faults_*.py.
"""

from __future__ import annotations

from guests import needs_lab
from rolling import RATE
from typed import fab

from flotilla.lock import Lock

pytestmark = needs_lab


def test_a_deploy_under_mixed_traffic_fails_no_request_and_loses_no_row(fleet) -> None:
    with fleet.clients() as clients:
        outcome = fab("deploy.run", "--version", fleet.other, "--yes")
        clients.saw_nothing()
    assert outcome["result"] == "done"
    assert outcome["failed"] == 0
    # Clients are served before and after the deploy too; while it ran, every one was counted.
    assert outcome["served"] >= RATE * outcome["seconds"] * 0.8
    fleet.is_whole(fleet.other)


def test_a_release_that_names_another_version_is_seen_by_the_canary_alone(fleet) -> None:
    with fleet.clients() as clients:
        outcome = fab("deploy.run", "--version", fleet.releases["wrong-version"], "--yes", code=2)
        clients.saw_nothing()
    assert outcome["result"] == "rolled back"
    assert outcome["seconds"] <= 30
    assert len(outcome["steps"]) == 1, "only the canary may have been touched"
    assert "something-else" in outcome["reason"]
    fleet.is_whole(fleet.version)


def test_without_yes_and_without_a_terminal_only_the_plan_is_printed(fleet) -> None:
    told = fab("deploy.run", "--version", fleet.other, code=3)
    assert "no terminal" in told["error"]["what"]
    fleet.is_whole(fleet.version)


def test_a_version_that_does_not_exist_is_a_bad_option_that_names_those_that_do(fleet) -> None:
    told = fab("deploy.run", "--version", "test-none", "--yes", code=5)
    assert fleet.version in told["error"]["what"]


def test_a_second_deploy_is_refused_and_told_who_is_at_work(fleet) -> None:
    with Lock(fleet.settings, "deploy", reason="a test of the lock"):
        told = fab("deploy.run", "--version", fleet.other, "--yes", code=3)
    assert "a test of the lock" in told["error"]["why"]
    fleet.is_whole(fleet.version)


def test_history_tells_the_deploys_of_this_fleet(fleet) -> None:
    newest = fab("deploy.history")[0]
    assert newest["version"].startswith("test-")
    assert newest["result"] in {"done", "nothing to do", "rolled back"}

"""Work on the load balancers while clients are served."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from guests import needs_lab
from typed import fab, typed

from flotilla.aws import edge
from flotilla.settings import Settings
from flotilla.traffic import Background

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.timeout(600)]

# One move of the address; a restart of the one without it is seen by nobody.
GAP_SECONDS = 4.0


def test_both_are_restarted_one_after_the_other_and_the_address_moves_once(
    standing_fleet: Settings,
) -> None:
    before = fab("lb.status")
    assert before["problems"] == []
    other = next(one["name"] for one in before["members"] if not one["owner"])
    plan = typed("lb.patch", "--restart", code=3).stderr
    assert plan.index(f"{other}: upgrade and restart") < plan.index(f"{before['owner']}: move")
    with Background("--url", edge.url(standing_fleet), "--rate", "50") as clients:
        done = fab("lb.patch", "--restart", "--yes")
        seen = clients.stop()
    assert sorted(done["hosts"]) == sorted(one["name"] for one in before["members"])
    assert (done["moved"], done["owner"]) == ([before["owner"]], other)
    assert seen["gap_seconds"] < GAP_SECONDS
    after = fab("lb.status")
    assert (after["owner"], after["problems"]) == (other, [])


def test_nothing_is_begun_while_one_of_them_could_not_serve(standing_fleet: Settings) -> None:
    members = fab("lb.status")["members"]
    other = next(one["name"] for one in members if not one["owner"])
    typed("fleet.run", "--on", other, "--sudo", "systemctl stop keepalived")
    try:
        refused = fab("lb.patch", "--restart", "--yes", code=3)["error"]
        assert f"{other} could not serve" in refused["what"]
        assert refused["untouched"] == "Nothing was changed"
    finally:
        typed("fleet.run", "--on", other, "--sudo", "systemctl start keepalived")


def test_ten_reloads_fail_no_request(standing_fleet: Settings) -> None:
    mix = ("--rate", "100", "--mix", "keep-alive=1,close=1")
    with Background("--url", edge.url(standing_fleet), *mix) as clients:
        for _ in range(10):
            typed("fleet.run", "--on", "lb", "--sudo", "systemctl reload haproxy")
        seen = clients.stop()
    assert seen["failed"] == 0, seen["failures"]
    assert seen["served"] > 500


def test_the_maintenance_page_goes_with_the_address_and_outlives_a_reload(
    standing_fleet: Settings,
) -> None:
    url = edge.url(standing_fleet)
    assert fab("lb.status")["maintenance"] is None
    typed("lb.maintenance", "--on", "--reason", "a rehearsal", code=3)
    assert page(url)[0] == 200, "that was the plan, and nothing else"
    done = fab("lb.maintenance", "--on", "--reason", "a rehearsal", "--yes")
    try:
        assert done["hosts"][-1] == fab("lb.status")["owner"]
        assert page(url) == (503, "300")
        typed("fleet.run", "--on", "lb", "--sudo", "systemctl reload haproxy")
        assert page(url) == (503, "300")
        moved = fab("lb.failover", "--yes")
        assert page(url) == (503, "300")
        timers = ("systemctl", "list-timers", "--all", "flotilla-keepalived-back.timer")
        left = typed("fleet.run", "--on", moved["old"], "--sudo", " ".join(timers))
        assert "0 timers listed" in left.stdout, "it would cancel the stop of a later move"
        assert page(url + standing_fleet.application.health_path)[0] == 200
        assert fab("lb.status")["maintenance"]["reason"] == "a rehearsal"
        assert any("a rehearsal" in one["what"] for one in fab("fleet.status")["findings"])
    finally:
        fab("lb.maintenance", "--off", "--yes")
    assert page(url)[0] == 200
    assert fab("lb.maintenance", "--off", "--yes")["changed"] is False
    assert fab("lb.status")["problems"] == []


def page(url: str) -> tuple[int, str | None]:
    """The status and Retry-After of one request."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"]

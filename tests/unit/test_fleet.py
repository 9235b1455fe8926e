"""A command on many hosts and the logs of many hosts: what is told of them, and how it ends."""

from __future__ import annotations

import shlex

import pytest

from flotilla import fleet, fleet_logs
from flotilla.errors import HostFailed, Unreachable
from flotilla.hosts.ssh import Result, Results


def result(host: str, rc: int = 0, stdout: str = "", stderr: str = "") -> Result:
    return Result(host, stdout, stderr, rc, 0.1)


GONE = Unreachable("app-3: no answer while connecting")


def test_hosts_that_said_the_same_share_it_in_the_order_of_the_fleet():
    results = Results(
        {
            "lb-1": result("lb-1", stdout="two\n"),
            "app-1": result("app-1", stdout="one\n"),
            "app-2": result("app-2", stdout="two\n"),
            "app-3": GONE,
        }
    )
    assert fleet.grouped(results) == (
        "== lb-1, app-2: exit 0\ntwo\n== app-1: exit 0\none\n== app-3: no answer while connecting"
    )


def test_what_went_to_stderr_is_shown_too():
    results = Results({"app-1": result("app-1", 1, stderr="no such file\n")})
    assert fleet.grouped(results) == "== app-1: exit 1\nno such file"


@pytest.mark.parametrize(
    ("results", "kind"),
    [
        ({"app-1": result("app-1")}, type(None)),
        ({}, type(None)),
        ({"app-1": result("app-1", 1), "app-3": GONE}, HostFailed),
        ({"app-1": result("app-1"), "app-3": GONE}, Unreachable),
        ({"app-1": HostFailed("app-1: sleep 9 was ended after 1 s")}, HostFailed),
    ],
)
def test_a_failed_command_outweighs_a_silent_host(results, kind):
    assert isinstance(fleet.failure(Results(results), "true"), kind)


def test_the_failure_names_every_host_and_counts_the_rest():
    error = fleet.failure(
        Results({"app-1": result("app-1", 1), "app-2": result("app-2"), "app-3": GONE}), "true"
    )
    assert "true failed on app-1 and could not be run on app-3. 1 of 3 hosts did it." in str(error)


def test_programs_get_every_result_and_every_error():
    hosts = fleet.as_dict(Results({"app-1": result("app-1", 2, "a", "b"), "app-3": GONE}), "x")
    assert hosts["hosts"]["app-1"] == {"rc": 2, "stdout": "a", "stderr": "b", "seconds": 0.1}
    assert hosts["hosts"]["app-3"]["error"]["exit_code"] == 4


def at(second: int, host: str, text: str = "x") -> str:
    return f"2026-01-01T00:00:{second:02}.000000+00:00 {host} {text}"


def test_entries_are_merged_by_time_and_keep_their_further_lines():
    found = {
        "app-1": [at(1, "app-1", "Traceback"), "    of app-1", at(4, "app-1")],
        "app-2": [at(2, "app-2"), at(3, "app-2", "multi"), "    line"],
    }
    assert fleet_logs.merged(found) == [
        at(1, "app-1", "Traceback"),
        "    of app-1",
        at(2, "app-2"),
        at(3, "app-2", "multi"),
        "    line",
        at(4, "app-1"),
    ]


def test_lines_before_the_first_entry_are_not_given_to_another_host():
    found = {"app-1": [at(5, "app-1")], "app-2": ["-- Boot --", at(1, "app-2")]}
    assert sorted(fleet_logs.merged(found)) == sorted(
        line for one in found.values() for line in one
    )
    assert fleet_logs.merged(found).index(at(1, "app-2")) < fleet_logs.merged(found).index(
        at(5, "app-1")
    )


@pytest.mark.parametrize("nasty", ["x; reboot", "$(reboot)", "-f"])
def test_what_the_operator_types_reaches_journalctl_as_one_word(nasty):
    words = shlex.split(fleet_logs.command(nasty, nasty, 5))
    assert f"--unit={nasty}" in words
    assert f"--since={nasty}" in words
    assert words[0] == "journalctl"


def test_with_a_time_all_lines_since_then_are_wanted():
    assert "--lines" not in fleet_logs.command("", "today", 5)
    assert "--lines=5" in fleet_logs.command("", "", 5)
    assert "--lines=5" in fleet_logs.command("", "", 5, follow=True)

"""The operator's view of the standing fleet: what it says when all is well, and when it is not.

Every command is typed as an operator types it; what is broken is broken on real hosts.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from guests import REPO, control, needs_lab
from typed import FAB, fab, typed

from flotilla import inventory, status
from flotilla.lock import Lock
from flotilla.settings import Settings

pytestmark = needs_lab

# A look that waits for one dead host, and the start of fab, on two busy cores.
DEAD_HOST_SECONDS = 20.0
HEALED_SECONDS = 60.0


@pytest.fixture(scope="module")
def settings(standing_fleet: Settings) -> Settings:
    until_well()
    return standing_fleet


def look() -> dict[str, Any]:
    seen: dict[str, Any] = fab("fleet.status")
    return seen


def alarms(seen: dict[str, Any]) -> list[str]:
    """What somebody has to act on."""
    return [one["what"] for one in seen["findings"] if one["severity"] != "note"]


def until_well() -> None:
    """Wait until nobody has to act; what somebody had to act on last is told."""
    end = time.monotonic() + HEALED_SECONDS
    while found := alarms(look()):
        assert time.monotonic() < end, found


@contextmanager
def broken(settings: Settings, name: str, kind: str = "freeze") -> Iterator[None]:
    """A fault on a host of the fleet; afterwards it is undone and the fleet is well again."""
    host = inventory.load(settings, refresh=True).host(name)
    control("fault", {"target": host.instance_id, "kind": kind, "args": {}})
    try:
        yield
    finally:
        control("heal", {"target": host.instance_id})
        until_well()


def test_a_healthy_fleet_is_shown_from_every_side(settings):
    seen = look()
    assert [one for one in seen["findings"] if one["severity"] != "note"] == []
    assert seen["ok"] is True
    silent = {host["name"]: host["silent"] for host in seen["hosts"] if host["silent"]}
    assert silent == {}
    assert len(seen["hosts"]) == sum(tier.count for _, tier in settings.tiers.items())
    assert sorted(seen["edge"]["vrrp"].values()) == ["BACKUP", "MASTER"]
    assert seen["edge"]["vrrp"][seen["edge"]["owner"]] == "MASTER"
    assert all(host["image"]["tested"] for host in seen["hosts"])
    assert {one["ready"] for one in seen["app"]} == {200}
    assert len({one["served"] for one in seen["app"]}) == 1
    for balancer in seen["lb"]:
        assert {one["status"] for one in balancer["servers"]} == {"UP"}
        assert balancer["traffic"]["errors"] >= 0
    primary = seen["mysql"]["primary"]
    assert {one["proxies"]["mysql_writer"][0] for one in seen["app"]} == {primary}
    assert {one["proxies"]["redis_primary"][0] for one in seen["app"]} == {seen["redis"]["primary"]}


def test_a_pipe_gets_plain_text_with_every_host_in_it(settings):
    board = typed("fleet.status").stdout
    assert "\x1b" not in board
    assert "all is well" in board
    for host in inventory.load(settings).hosts:
        assert re.search(rf"^{host.name} ", board, re.MULTILINE)


@pytest.mark.parametrize("name", ["app-2", pytest.param("redis-3", marks=pytest.mark.drill)])
def test_a_dead_host_is_named_and_costs_seconds(settings, name):
    with broken(settings, name):
        begun = time.monotonic()
        seen = look()
        assert time.monotonic() - begun < DEAD_HOST_SECONDS
        assert any(what.startswith(f"{name} does not answer") for what in alarms(seen))
        silent = [host["name"] for host in seen["hosts"] if host["silent"]]
        assert silent == [name]


def test_a_dead_bastion_is_one_cause_and_not_twelve(settings):
    with broken(settings, "bastion-1"):
        begun = time.monotonic()
        found = alarms(look())
        assert time.monotonic() - begun < DEAD_HOST_SECONDS
        assert len(found) == 1
        assert found[0].startswith("bastion-1 does not let us through")


def test_a_unit_that_stopped_is_named_with_the_way_to_its_log(settings):
    typed("fleet.run", "--on", "app-3", "--sudo", "systemctl stop haproxy")
    try:
        seen = look()
        (found,) = [one for one in seen["findings"] if one["what"].startswith("haproxy is")]
        assert found["what"] == "haproxy is inactive on app-3"
        typed(*found["next"].removeprefix("fab ").split(), "--lines", "5")
    finally:
        typed("fleet.run", "--on", "app-3", "--sudo", "systemctl start haproxy")
    until_well()


def test_a_server_drained_on_one_load_balancer_is_told_apart_from_a_broken_one(settings):
    order = "echo 'set server app/app-1 state {}' | socat - /run/haproxy/admin.sock"
    typed("fleet.run", "--on", "lb-2", "--sudo", order.format("drain"))
    try:
        findings = look()["findings"]
        assert [one["subject"] for one in findings].count("app-1") == 1, findings
        found = next(one for one in findings if one["subject"] == "app-1")
        assert found["what"].startswith("app-1 is DRAIN")
        assert found["what"].endswith("on lb-2")
        assert found["next"].endswith("--adopt")
    finally:
        typed("fleet.run", "--on", "lb-2", "--sudo", order.format("ready"))


def test_without_the_aws_api_the_hosts_are_shown_all_the_same(settings):
    away = settings.aws.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    seen = status.status(settings.model_copy(update={"aws": away}))
    assert any(what.startswith("AWS could not be asked") for what in alarms(seen))
    silent = {host["name"]: host["silent"] for host in seen["hosts"] if host["silent"]}
    assert silent == {}
    assert {one["status"] for lb in seen["lb"] for one in lb["servers"]} == {"UP"}


# --- a command on many hosts ---------------------------------------------------------------------


def test_a_command_runs_everywhere_and_hosts_that_agree_share_a_line(settings):
    done = typed("fleet.run", "--on", "lb,app", "echo same")
    assert done.stdout == "== lb-1, lb-2, app-1, app-2, app-3: exit 0\nsame\n"
    assert len(done.stderr.splitlines()) == 5


def test_a_command_that_fails_somewhere_is_exit_2_and_every_result_is_kept(settings):
    done = typed("fleet.run", "--on", "app", "--json", "test $(hostname) = app-1", code=2)
    hosts = json.loads(done.stdout)["hosts"]
    assert {name: one["rc"] for name, one in hosts.items()} == {"app-1": 0, "app-2": 1, "app-3": 1}
    assert "app-2, app-3" in done.stderr


def test_a_host_that_does_not_answer_is_exit_4_and_the_others_did_it(settings):
    with broken(settings, "redis-3"):
        done = typed("fleet.run", "--on", "redis", "--json", "hostname", code=4)
    hosts = json.loads(done.stdout)["hosts"]
    assert hosts["redis-1"]["stdout"] == "redis-1\n"
    assert hosts["redis-3"]["error"]["kind"] == "Unreachable"


@pytest.mark.parametrize(
    "command",
    [
        ("fleet.run", "--on", "web", "true"),
        ("fleet.logs", "web"),
        ("fleet.ssh", "web"),
        ("fleet.configure", "--limit", "web", "--yes"),
    ],
)
def test_an_unknown_host_or_role_is_answered_with_the_choices(settings, command):
    said = typed(*command, code=5).stderr
    assert "no host, role or zone 'web'" in said
    assert "roles: bastion, lb, app, mysql, redis" in said
    assert "app-1, app-2, app-3" in said
    assert "Nothing was changed" in said


def test_ssh_opens_a_shell_on_the_host(settings):
    assert typed("fleet.ssh", "app-2", stdin="hostname\n").stdout.splitlines()[-1] == "app-2"
    assert "choose one: app-1, app-2, app-3" in typed("fleet.ssh", "app", code=5).stderr


# --- logs ----------------------------------------------------------------------------------------


def test_logs_of_many_hosts_are_one_story_in_order(settings):
    mark = uuid.uuid4().hex
    for turn, host in enumerate(["app-2", "app-1", "app-2"]):
        typed("fleet.run", "--on", host, f"logger --tag flotilla-test {mark} {turn}")
    told = typed("fleet.logs", "app", "--since", "2 min ago").stdout
    lines = [line for line in told.splitlines() if mark in line and "flotilla-test" in line]
    turns = [(line.split()[1], line[-1]) for line in lines if "COMMAND" not in line]
    assert turns == [("app-2", "0"), ("app-1", "1"), ("app-2", "2")]


def test_a_time_that_is_none_is_a_bad_option(settings):
    assert (
        "no time that journalctl knows"
        in typed("fleet.logs", "app-1", "--since", "whenever", code=5).stderr
    )


def test_followed_logs_arrive_as_they_come_until_interrupted(settings):
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [FAB, "fleet.logs", "app-1", "--follow", "--lines", "1"],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as following:
        assert following.stdout is not None
        try:
            assert following.stdout.readline()  # it has begun
            typed("fleet.run", "--on", "app-1", f"logger --tag flotilla-test {mark}")
            assert any(mark in line for line in iter(following.stdout.readline, ""))
        finally:
            following.send_signal(signal.SIGINT)
        following.stdout.close()
        assert following.wait(15) == 0


# --- configure -----------------------------------------------------------------------------------


def test_without_a_terminal_and_yes_the_plan_is_all_there_is(settings):
    done = typed("fleet.configure", "--limit", "lb", code=3)
    assert "lb-1, lb-2" in done.stderr
    assert "fab fleet.configure --limit lb --yes" in done.stderr


def test_configure_refuses_while_somebody_else_changes_the_fleet(settings):
    with Lock(settings, "deploy", reason="a test that holds it"):
        said = typed("fleet.configure", "--limit", "lb", "--yes", code=3).stderr
        assert "a test that holds it" in said
        assert "--take-over" in said
        assert any("a test that holds it" in one["what"] for one in look()["findings"])


@pytest.mark.drill
def test_a_host_that_goes_while_configured_is_named_and_ends_with_4(settings):
    with broken(settings, "redis-3", kind="cut"):
        done = typed("fleet.configure", "--limit", "redis", "--yes", "--json", code=4)
    assert "no answer from redis-3" in done.stderr
    assert "FAILED redis-3" in done.stderr
    log = re.search(r"All output: (\S+)", done.stderr)
    assert log is not None
    assert "UNREACHABLE" in (REPO / log[1]).read_text()

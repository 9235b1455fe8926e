"""What an operator is told about secrets, from an account of moto's."""

from __future__ import annotations

import importlib.util
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from ansible.playbook.task import Task
from fleets import maker
from moto import mock_aws
from test_ssh import host

from flotilla import secrets as capability
from flotilla.agent.endpoint import Endpoint, listen, response
from flotilla.aws import secrets as ssm
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.hosts.ssh import Result
from flotilla.provision.world import data
from flotilla.rules.secrets import NEXT, PREVIOUS, ROTATED, Write
from flotilla.secrets import hosts as edge
from flotilla.snapshot import Host, Snapshot

YEAR = 366 * 86400
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        made = maker(tmp_path)().settings
        client = boto3.client("ssm", region_name=made.region)
        for role, names in data("secrets.yml").items():
            for name in names:
                client.put_parameter(
                    Name=made.parameter(role, name), Value=f"{role}/{name}", Type="SecureString"
                )
        yield made


def test_every_secret_is_shown_and_no_value(settings):
    found = capability.status(settings)
    assert {row["name"] for row in found["secrets"]} >= set(ROTATED)
    assert all(row["age_days"] == 0 and row["rotating"] is None for row in found["secrets"])
    assert found["notes"] == []
    assert "redis/app_password'" not in str([row | {"path": ""} for row in found["secrets"]])


def test_an_old_secret_is_a_note_with_its_command_where_there_is_one(settings):
    notes = capability.status(settings, now=time.time() + YEAR)["notes"]
    assert any(
        n.startswith("redis-app: 366 days old") and "fab secrets.rotate redis-app" in n
        for n in notes
    )
    assert any("fab backup.rotate-key" in note for note in notes)
    assert not [note for note in notes if note.startswith("mysql-root")]


def test_a_rotation_half_way_and_a_missing_secret_are_told(settings):
    ssm.write(settings, "redis", "app_password", Write(NEXT, "new"), by="ann@desk:1")
    client = boto3.client("ssm", region_name=settings.region)
    client.delete_parameter(Name=settings.parameter("redis", "monitor_password"))
    found = capability.status(settings)
    rows = {row["name"]: row for row in found["secrets"]}
    assert rows["redis-app"]["rotating"] == "accept"
    assert rows["redis-monitor"]["age_days"] is None
    assert len(found["notes"]) == 2


def test_a_write_says_who_made_it_and_is_read_back(settings):
    now = ssm.write(settings, "redis", "app_password", Write("", "new"), by="ann@desk:1")
    assert now.current == "new"
    assert ssm.stored(settings)[settings.parameter("redis", "app_password")].by == "ann@desk:1"
    gone = ssm.write(settings, "redis", "app_password", Write(NEXT, None), by="ann@desk:1")
    assert gone.next is None, "what is gone already is no error"


def test_a_run_that_lost_its_lock_while_it_read_writes_nothing(settings):
    """Asleep between the two, it would bring back what another one has ended."""

    def lost() -> None:
        raise Refused("the lock is lost")

    with pytest.raises(Refused, match="lock is lost"):
        ssm.write(settings, "redis", "app_password", Write(PREVIOUS, "old"), by="x", check=lost)
    assert not ssm.held(settings, "redis", ["app_password"])["app_password"].is_rotating


@pytest.mark.parametrize("name", ["app-secret", "mysql-backup-keys", "mysql-root", "nobody"])
def test_what_is_not_rotated_is_refused_with_those_that_are(settings, name):
    with pytest.raises(BadOption, match="redis-app, mysql-app"):
        capability.rotate(settings, name, confirmed=print, said=print)


def test_parameters_that_no_rotation_leaves_stop_it_before_anything_is_changed(settings):
    ssm.write(settings, "redis", "app_password", Write(PREVIOUS, "redis/app_password"), by="x")
    with pytest.raises(Refused, match="old value again"):
        capability.rotate(settings, "redis-app", confirmed=print, said=print)


def test_a_plan_that_is_not_agreed_to_changes_nothing(settings):
    def no(plan: str) -> None:
        assert "accept: have every server accept both" in plan
        raise Refused("not confirmed")

    with pytest.raises(FlotillaError, match="not confirmed"):
        capability.rotate(settings, "redis-app", confirmed=no, said=print)
    assert not ssm.held(settings, "redis", ["app_password"])["app_password"].is_rotating


def test_a_key_of_one_s_own_seals_what_is_written_from_then_on(settings):
    alias = "alias/shop"
    kms = boto3.client("kms", region_name=settings.region)
    kms.create_alias(AliasName=alias, TargetKeyId=kms.create_key()["KeyMetadata"]["KeyId"])
    own = settings.model_copy(
        update={"secrets": settings.secrets.model_copy(update={"kms_key": alias})}
    )
    ssm.write(own, "redis", "app_password", Write("", "new"), by="ann@desk:1")
    keys = {row["name"]: row["key"] for row in capability.status(own)["secrets"]}
    assert keys["redis-app"] == alias
    assert keys["redis-monitor"] != alias


@dataclass(frozen=True)
class Here(edge.Fleet):
    """One host of Redis, whose commands this machine's shell runs, after ``first``."""

    first: str

    @contextmanager
    def _runner(self) -> Iterator[Any]:
        yield self, Snapshot(0.0, (host("redis-1"),))

    def run(self, host: Host, command: str, *, stdin: str, **_: Any) -> Result:
        argv = ["sh", "-c", f"{self.first}; {command}"]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        return Result(host.name, done.stdout, done.stderr, done.returncode, 0.0)


@pytest.mark.parametrize(
    ("holds", "first", "why"),
    [
        ("new", "true", None),
        ("new", "echo sudo: unable to resolve host redis-1 >&2", None),
        ("old", "true", "{} does not hold the new value"),
        ("new old", "true", "{} holds the old value too"),
        (None, "true", "{} could not be searched: grep: {}: No such file or directory"),
        (
            "new",
            "echo sudo: a password is required >&2; exit 1",
            "{} could not be searched: sudo: a password is required",
        ),
        ("new", "kill -9 $$", "{} could not be searched: exit -9"),
    ],
)
def test_a_host_that_could_not_be_asked_is_not_one_without_the_value(tmp_path, holds, first, why):
    file = tmp_path / "flotilla.json"
    if holds:
        file.write_text(f"password={holds}\n")
    secret = replace(ROTATED["redis-monitor"], file=str(file))
    fleet = Here(maker(tmp_path)().settings, secret, "redis-monitor", print, first)
    found = fleet.behind("new", "old")
    assert found == ({"redis-1": why.replace("{}", str(file))} if why else {})


@dataclass(frozen=True)
class Asleep(edge.Fleet):
    """Hosts that are stopped and hold what they were given last."""

    @contextmanager
    def _runner(self) -> Iterator[Any]:
        stopped = (replace(host(f"{one}-1"), role=one, state="stopped") for one in ("redis", "app"))
        yield self, Snapshot(0.0, tuple(stopped))

    def _stale(self) -> list[str]:
        return []


@pytest.mark.parametrize(
    ("name", "users", "away"),
    [
        ("redis-app", "app-1", {"app-1", "redis-1"}),
        ("mysql-app", "app-1", {"app-1"}),
        ("redis-replication", "redis-1", {"redis-1"}),
        ("mysql-monitor", None, set()),
    ],
)
def test_a_host_that_is_stopped_is_one_that_has_the_old_value(settings, name, users, away):
    """It was not asked, and came back after the rotation with a password that is refused."""
    ssm.client(settings, "ssm").put_parameter(
        Name=settings.parameter("authority", "certificate"), Value="one", Type="String"
    )
    fleet = Asleep(settings, ROTATED[name], name, print)
    why = "it does not run, and would come back with the old value"
    assert fleet.behind("new", "old") == ({users: why} if users else {})
    assert fleet.away() == dict.fromkeys(away, why)
    servers = {"redis-1": [why, why]} if name.startswith("redis") else {}
    assert fleet.logins(["new", "old"]) == servers


def test_a_rotation_that_a_stopped_host_would_end_is_not_begun(settings):
    with pytest.raises(Refused, match=r"app-1: it does not run.*; redis-1: .*Nothing was changed"):
        capability.rotate(settings, "redis-app", confirmed=pytest.fail, said=print, hosts=Asleep)
    assert not ssm.held(settings, "redis", ["app_password"])["app_password"].is_rotating


@dataclass(frozen=True)
class Database(edge.Fleet):
    """One host of MySQL, on which commands are run by this machine's shell."""

    state: str = "running"

    @contextmanager
    def _runner(self) -> Iterator[Any]:
        made = replace(host("mysql-1"), role="mysql", state=self.state, private_ip="127.0.0.9")
        yield self, Snapshot(0.0, (made,))

    def run(self, host: Host, command: str, *, stdin: str, **_: Any) -> Result:
        done = subprocess.run(
            ["sh", "-c", command], input=stdin, capture_output=True, text=True, check=False
        )
        return Result(host.name, done.stdout, done.stderr, done.returncode, 0.0)


@pytest.mark.parametrize(
    ("state", "held", "why"),
    [
        ("running", {"flotilla_watcher": 1}, None),
        ("running", {"flotilla_watcher": 3}, "it uses version 3"),
        ("running", {}, "HTTP/1.0 200 OK"),
        ("running", None, "HTTP/1.0 404 Not Fou"),
        ("stopped", {"flotilla_watcher": 1}, "it does not run, and would come back"),
    ],
)
def test_a_watcher_is_asked_which_version_it_uses(settings, monkeypatch, state, held, why):
    def answer(_: str) -> bytes:
        return response(404, {}) if held is None else response(200, dict(held))

    with listen("127.0.0.9", 0) as listener:
        threading.Thread(target=Endpoint(listener, answer).serve, daemon=True).start()
        script = edge._READ_AGAIN.replace(str(edge.HEALTH_PORT), str(listener.getsockname()[1]))
        monkeypatch.setattr(edge, "_READ_AGAIN", script.replace("15.0", "0.5"))
        fleet = Database(settings, ROTATED["mysql-watcher"], "mysql-watcher", print, state)
        found = fleet.behind("new", "old")
    assert [word for word in found.values() if not why or why not in word] == []
    assert bool(found) == bool(why)


# --- Ansible's way --------------------------------------------------------------------------------


@pytest.fixture
def plugin(settings, monkeypatch):
    """What the action says of these roles' secrets."""
    path = ROOT / "playbooks/action_plugins/flotilla_secrets.py"
    spec = importlib.util.spec_from_file_location("flotilla_secrets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.config, "load", lambda _: settings)
    task = Task()
    task.args = {"roles": ["redis", "app"]}
    action = module.ActionModule(task, *[None] * 5)
    action._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
    return lambda: action.run(task_vars={"fleet": {"env": "lab"}})


def test_hosts_are_configured_with_every_secret_or_none_is(settings, plugin):
    slot = "redis/app_password"
    assert plugin()["values"][slot] == slot
    ssm.client(settings, "ssm").delete_parameter(
        Name=settings.parameter("redis", "monitor_password")
    )
    found = plugin()
    assert found["failed"]
    assert "SSM has no parameter /flotilla/lab/redis/monitor_password" in found["msg"]
    assert "fab fleet.provision" in found["msg"]
    assert "values" not in found


def test_a_secret_that_was_deleted_in_a_rotation_is_one_error(settings):
    ssm.client(settings, "ssm").delete_parameter(Name=settings.parameter("redis", "app_password"))
    with pytest.raises(Refused, match="has no parameter /flotilla/lab/redis/app_password any more"):
        ssm.write(settings, "redis", "app_password", Write(NEXT, "new"), by="ann@desk:1")

"""Rolling deploys on the standing fleet (make demo brings it up), as an operator types them.

Judged by clients of the edge address: pages, sessions, slow requests, and entries whose every
acknowledgement is checked afterwards.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from guests import REPO, needs_lab, until

from flotilla import inventory
from flotilla.aws import edge
from flotilla.aws.session import client
from flotilla.deploy import World, connect
from flotilla.lock import Lock
from flotilla.settings import Settings
from flotilla.traffic import Background

pytestmark = needs_lab

SECONDS = 300


@pytest.fixture(scope="module")
def settings(standing_fleet: Settings) -> Settings:
    return standing_fleet


def fab(*arguments: str, code: int = 0) -> Any:
    """Run a task with --json. What it printed, parsed; fails unless it exits with ``code``."""
    done = subprocess.run(
        [Path(sys.executable).with_name("fab"), *arguments, "--json"],
        cwd=REPO,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Releases:
    """Two good releases, one that ends at once, one that names another version."""

    a: str
    b: str
    ends: str
    lies: str


@pytest.fixture(scope="module")
def releases(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """Released under names of this run: a version never changes, and the sources may have."""
    run = uuid.uuid4().hex[:6]
    folder = tmp_path_factory.mktemp("releases")

    def released(name: str, *arguments: str) -> str:
        return str(fab("app.release", "--version", f"test-{name}-{run}", *arguments)["version"])

    a = released("a")
    built = settings.scratch / "artifacts" / f"{settings.application.name}-{a}.tar.gz"
    spoilt = {
        "ends": {"guestbook/wsgi.py": b"raise SystemExit('ended on purpose')\n"},
        "lies": {"VERSION": b"something else\n"},
    }
    bad = {}
    for name, changed in spoilt.items():
        path = folder / f"{name}.tar.gz"
        changed_copy(built, path, changed)
        bad[name] = released(name, "--artifact", str(path))
    return Releases(a, released("b"), **bad)


def changed_copy(source: Path, target: Path, changed: dict[str, bytes]) -> None:
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for member in old:
            data = old.extractfile(member)
            assert data
            content = changed.get(member.name, data.read())
            fresh = tarfile.TarInfo(member.name)
            fresh.size, fresh.mode = len(content), member.mode
            new.addfile(fresh, io.BytesIO(content))


@pytest.fixture
def on_a(settings: Settings, releases: Releases) -> str:
    """Every host runs release a; the edge address answers."""
    fab("deploy.run", "--version", releases.a, "--adopt", "--yes")
    return edge.url(settings)


@contextmanager
def world(settings: Settings) -> Iterator[World]:
    with connect(settings) as (made, _):
        yield made


def served_versions(url: str, asked: int = 24) -> set[str]:
    """What clients of the edge are served; each question on a new connection."""
    found = set()
    for _ in range(asked):
        with urllib.request.urlopen(f"{url}/version", timeout=10) as answer:
            found.add(json.load(answer)["version"])
    return found


def everything_up(settings: Settings) -> bool:
    with world(settings) as made:
        seen = made.balancers.servers()
    return all(server.status == "UP" for lb in seen.values() for server in lb.values())


def test_a_deploy_under_mixed_traffic_fails_no_request_and_loses_no_row(
    settings, on_a, releases
) -> None:
    with Background("--url", on_a, "--rate", "60", "--verify") as clients:
        outcome = fab("deploy.run", "--version", releases.b, "--yes")
        seen = clients.stop()
    assert outcome["result"] == "done"
    assert (outcome["failed"], seen["failed"]) == (0, 0), seen["failures"]
    # Clients are served before and after the deploy too; while it ran, every one was counted.
    assert outcome["served"] >= 60 * outcome["seconds"] * 0.8
    assert seen["acked"] > 0
    assert seen["lost"] == 0
    assert served_versions(on_a) == {releases.b}


@pytest.mark.parametrize("kind", ["ends", "lies"])
def test_a_bad_release_is_taken_back_by_the_canary_and_no_client_sees_it(
    settings, on_a, releases, kind: str
) -> None:
    release = getattr(releases, kind)
    with Background("--url", on_a, "--rate", "60") as clients:
        outcome = fab("deploy.run", "--version", release, "--yes", code=2)
        seen = clients.stop()
    assert outcome["result"] == "rolled back"
    assert outcome["seconds"] <= 30
    assert seen["failed"] == 0, seen["failures"]
    assert len(outcome["steps"]) == 1, "only the canary may have been touched"
    assert served_versions(on_a) == {releases.a}
    until(lambda: everything_up(settings), 30, "every server is UP again")


def test_without_yes_and_without_a_terminal_only_the_plan_is_printed(
    settings, on_a, releases
) -> None:
    told = fab("deploy.run", "--version", releases.b, code=3)
    assert "no terminal" in told["error"]["what"]
    assert served_versions(on_a) == {releases.a}


def test_a_version_that_does_not_exist_is_a_bad_option_that_names_those_that_do(
    on_a, releases
) -> None:
    told = fab("deploy.run", "--version", "test-none", "--yes", code=5)
    assert releases.a in told["error"]["what"]


def test_a_second_deploy_is_refused_and_told_who_is_at_work(settings, on_a, releases) -> None:
    with Lock(settings, "deploy", reason="a test of the lock"):
        told = fab("deploy.run", "--version", releases.b, "--yes", code=3)
    assert "a test of the lock" in told["error"]["why"]
    assert served_versions(on_a) == {releases.a}


def test_a_host_somebody_took_out_stops_the_deploy_until_it_is_adopted(
    settings, on_a, releases
) -> None:
    with world(settings) as made:
        made.balancers.order("app-2", "state maint")
    told = fab("deploy.run", "--version", releases.b, "--yes", code=3)
    assert "app-2 was taken out of rotation" in told["error"]["what"]
    outcome = fab("deploy.run", "--version", releases.b, "--adopt", "--yes")
    assert outcome["result"] == "done"
    assert everything_up(settings)


def test_a_load_balancer_that_cannot_be_controlled_stops_the_deploy(
    settings, on_a, releases
) -> None:
    """The passive one: clients do not notice that its socket is gone."""
    holder = client(settings, "ec2").describe_addresses(
        Filters=[{"Name": "tag:Name", "Values": [settings.name_of("edge")]}]
    )["Addresses"][0]["InstanceId"]
    passive = next(
        host for host in inventory.load(settings).by_role("lb") if host.instance_id != holder
    )
    fab("lab.fault", passive.instance_id, "freeze-process", "--option", "unit=haproxy")
    try:
        told = fab("deploy.run", "--version", releases.b, "--yes", code=3)
        assert passive.name in told["error"]["what"]
    finally:
        fab("lab.heal")
    until(lambda: everything_up(settings), 60, "every server is UP again")
    assert served_versions(on_a) == {releases.a}


def cut_off(version: str, number: signal.Signals) -> int:
    """The exit code of a deploy that gets a signal while its canary is being switched."""
    fab_ = str(Path(sys.executable).with_name("fab"))
    with subprocess.Popen(
        [fab_, "deploy.run", "--version", version, "--yes"],
        cwd=REPO,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        assert any(" drain ... ok" in line for line in process.stderr)
        process.send_signal(number)
        process.communicate(timeout=SECONDS)
    return process.returncode


def test_a_deploy_that_is_interrupted_takes_everything_back(settings, on_a, releases) -> None:
    with Background("--url", on_a, "--rate", "60") as clients:
        assert cut_off(releases.b, signal.SIGINT) == 99
        seen = clients.stop()
    assert seen["failed"] == 0, seen["failures"]
    assert served_versions(on_a) == {releases.a}
    assert everything_up(settings)


def test_a_deploy_that_is_killed_harms_no_client_and_the_next_one_mends_it(
    settings, on_a, releases
) -> None:
    with Background("--url", on_a, "--rate", "60") as clients:
        assert cut_off(releases.b, signal.SIGKILL) == -signal.SIGKILL
        told = fab("deploy.run", "--version", releases.b, "--adopt", "--yes", code=3)
        assert "--take-over" in told["error"]["next"]
        outcome = fab(
            *("deploy.run", "--version", releases.b, "--adopt", "--take-over", "--yes"),
        )
        seen = clients.stop()
    assert outcome["result"] == "done"
    assert seen["failed"] == 0, seen["failures"]
    assert served_versions(on_a) == {releases.b}
    assert everything_up(settings)


def test_history_tells_the_deploys_of_this_fleet(on_a, releases) -> None:
    newest = fab("deploy.history")[0]
    assert newest["version"] == releases.a
    assert newest["result"] in {"done", "nothing to do"}

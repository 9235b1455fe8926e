"""The release tool asked through one open session: the real tool, run here on a folder."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from here import Here

from flotilla.deploy import world
from flotilla.deploy.world import OverSsh
from flotilla.errors import HostFailed, Unreachable

SOURCE = Path(__file__).resolve().parents[2] / "roles/app/files/app_release.py"
# The tool as a host runs it, but for the folder that it takes for /.
RUN = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("app_release", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
sys.exit(tool.main(["serve"], pathlib.Path(sys.argv[2])))
"""
SETTINGS = {
    "bucket": "b",
    "keep": 1,
    "migrate": "",
    "boot_seconds": 60,
    "version_path": "/v",
    "ready_path": "/r",
}


@pytest.fixture
def here() -> Iterator[Here]:
    made = Here()
    yield made
    made.close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with three releases and nothing that runs."""
    for folder in ("etc/app", "run/lock"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/app/release.json").write_text(json.dumps(SETTINGS))
    for version in "123":
        release = tmp_path / "srv/app/releases" / version
        release.mkdir(parents=True)
        (release / ".release.json").write_text(json.dumps({"version": version, "sha256": "ab"}))
    command = shlex.join([sys.executable, "-c", RUN, str(SOURCE), str(tmp_path)])
    monkeypatch.setattr(world, "_SERVE", f"{command} 2>&1")
    return tmp_path


def test_verbs_are_done_one_after_the_other_by_one_process(here: Here, root: Path) -> None:
    releases = OverSsh(here)
    words = ("stage", "2", "--sha256", "ab")
    assert releases.call("lb-1", *words, seconds=9) == {"version": "2", "already": True}
    assert releases.call("lb-1", "prune", seconds=9) == {"dropped": ["1", "2"]}
    assert [path.name for path in (root / "srv/app/releases").iterdir()] == ["3"]
    assert releases.call("lb-1", "migrate", "3", seconds=9) == {"ran": False, "output": ""}
    assert len(here.processes) == 1


@pytest.mark.usefixtures("root")
def test_what_the_tool_will_not_do_is_said_and_the_next_verb_is_done(here: Here) -> None:
    releases = OverSsh(here)
    with pytest.raises(HostFailed, match="lb-1: release 1 is here as ab, not cd"):
        releases.call("lb-1", "stage", "1", "--sha256", "cd", seconds=9)
    assert releases.call("lb-1", "prune", seconds=9)["dropped"]
    assert len(here.processes) == 1


@pytest.mark.usefixtures("root")
def test_what_takes_too_long_is_ended_on_the_host(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "bin/systemctl"
    hanging.parent.mkdir()
    hanging.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hanging.parent}:{os.environ['PATH']}")
    releases = OverSsh(here)
    with pytest.raises(HostFailed, match=r"lb-1: it was ended after 0\.5 s"):
        releases.call("lb-1", "status", seconds=0.5)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
    assert releases.call("lb-1", "prune", seconds=9)["dropped"]


def test_a_lock_is_held_for_one_verb_only(here: Here, root: Path) -> None:
    releases = OverSsh(here)
    releases.call("lb-1", "prune", seconds=9)
    with (root / "run/lock/app-release.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(HostFailed, match="another app-release is at work"):
            releases.call("lb-1", "prune", seconds=9)
    releases.call("lb-1", "prune", seconds=9)


@pytest.mark.usefixtures("root")
def test_a_host_that_was_started_again_is_asked_in_a_new_session(here: Here) -> None:
    releases = OverSsh(here)
    for number in range(1, 4):
        releases.call("lb-1", "prune", seconds=9)
        assert len(here.processes) == number
        here.end()


@pytest.mark.usefixtures("root")
def test_a_change_is_not_made_again_where_the_session_ends_in_its_middle(here: Here) -> None:
    """Who holds the lock by then was not looked at again."""
    releases = OverSsh(here)
    releases.call("lb-1", "prune", seconds=9)
    here.processes[0].send_signal(19)
    # It is stopped, so the question is sent; then it ends.
    lines = releases._lines["lb-1"]
    sent = lines._received

    def cut(channel: object) -> bytes:
        here.end()
        return sent(channel)  # type: ignore[arg-type]

    lines._received = cut  # type: ignore[assignment, method-assign]
    with pytest.raises(Unreachable, match="no answer during `app-release prune`"):
        releases.call("lb-1", "prune", seconds=9)
    assert len(here.processes) == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/none/app-release serve 2>&1", "lb-1: .*/none/app-release: not found"),
        ("echo usage; echo app-release: no such verb; exit 2", "lb-1: app-release: no such verb"),
    ],
)
def test_a_host_without_this_tool_is_to_be_configured(
    here: Here, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    monkeypatch.setattr(world, "_SERVE", f"sh -c {shlex.quote(command)}")
    with pytest.raises(HostFailed, match=said) as raised:
        OverSsh(here).call("lb-1", "status", seconds=9)
    assert raised.value.next == "fab fleet.configure --limit lb-1"

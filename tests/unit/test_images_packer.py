"""The adapter around packer-py, driving a stand-in for the packer program that each test writes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from flotilla.errors import FlotillaError, Refused
from flotilla.images.packer import Packer, StoppedError, arguments, artifact, artifact_of


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes the body of a shell script as `packer`, and makes an adapter that runs it."""

    def make(body, **options):
        path = tmp_path / "bin" / "packer"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return Packer(tmp_path, dict(os.environ) | {"SAID": "by us"}, **options)

    return make


def ends(pid, seconds=10.0):
    """Whether a process is gone, or dead and unburied, within that time: a kill takes a moment."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_lines_come_while_the_build_runs_and_all_of_them_in_the_end(program):
    seen = []
    arrived = threading.Event()

    def say(line):
        seen.append(line)
        arrived.set()

    # The program goes on only after its first line was seen: held back output would never end.
    packer = program("echo first; until [ -e go ]; do sleep 0.02; done; echo last >&2", say=say)
    opener = threading.Thread(
        target=lambda: arrived.wait(20) and (packer._folder / "go").touch(), daemon=True
    )
    opener.start()
    code, out, _ = packer.build("packer/base")
    assert (code, out) == (0, b"first\nlast\n")
    assert seen == ["first", "last"]


def test_options_folder_and_environment_reach_packer(program, tmp_path):
    packer = program('echo "$PWD $SAID $*"')
    _, out, _ = packer.build("packer/app", color="false", var_file=["a.json", "b.json"], force=True)
    told = (
        f"{tmp_path} by us build -color=false -var-file=a.json -var-file=b.json -force packer/app"
    )
    assert out.decode().strip() == told


def test_a_failing_build_returns_its_exit_code(program):
    assert program("exit 7").build("packer/base")[0] == 7


def test_after_its_time_a_build_is_stopped_and_its_children_with_it(program, tmp_path):
    packer = program('trap "exit 1" INT; sleep 300 & echo $! > child; wait', seconds=1)
    with pytest.raises(StoppedError, match="no end after 1 s"):
        packer.build("packer/base")
    assert ends(int((tmp_path / "child").read_text()))


def test_a_stopped_build_may_first_remove_what_it_made(program, tmp_path):
    stop = threading.Event()
    body = 'trap "echo cleaned > cleaned; exit 1" INT; touch ready; while :; do sleep 0.05; done'
    packer = program(body, seconds=60, stop=stop)

    def press():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        stop.set()

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(StoppedError):
        packer.build("packer/base")
    assert (tmp_path / "cleaned").read_text() == "cleaned\n"


def test_children_do_not_outlive_a_build_that_ended(program, tmp_path):
    # Its output goes elsewhere, or reading would wait for it: Ansible's SSH masters behave so.
    program("sleep 300 >/dev/null 2>&1 & echo $! > child").build("packer/base")
    assert ends(int((tmp_path / "child").read_text()))


@pytest.mark.parametrize(
    ("says", "release"), [("Packer v1.6.6", (1, 6, 6)), ("1.16.0", (1, 16, 0))]
)
def test_the_version_is_read(program, says, release):
    assert program(f"echo '{says}'").release() == release


def test_a_packer_that_is_too_old_or_missing_is_refused_with_the_next_command(
    program, tmp_path, monkeypatch
):
    with pytest.raises(Refused, match=r"is 1\.5\.1; the templates need") as caught:
        program("echo 'Packer v1.5.1'").release()
    assert caught.value.next == "make setup"
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(Refused, match="not installed"):
        Packer(tmp_path, dict(os.environ)).release()


def test_what_is_not_wanted_is_left_out_of_the_arguments():
    assert arguments({"force": False, "only": None, "on_error": "abort", "debug": True}) == [
        "-on-error=abort",
        "-debug",
    ]


def test_the_manifest_of_several_runs_gives_the_last_ones_image(tmp_path):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(
        '{"builds": [{"artifact_id": "eu-central-1:ami-old", "packer_run_uuid": "a"},'
        ' {"artifact_id": "eu-central-1:ami-new", "packer_run_uuid": "b"}], "last_run_uuid": "b"}'
    )
    assert artifact(manifest, "eu-central-1") == "ami-new"


def test_one_region_of_several_is_picked():
    assert artifact_of(["us-east-1:ami-1,eu-west-1:ami-2"], "eu-west-1") == "ami-2"
    with pytest.raises(FlotillaError, match="no image for eu-north-1"):
        artifact_of(["us-east-1:ami-1"], "eu-north-1")


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"builds": []}'])
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path, content):
    manifest = tmp_path / "manifest.json"
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(FlotillaError, match="manifest"):
        artifact(manifest, "eu-central-1")

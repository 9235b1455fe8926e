"""A command line that is wrong gets one sentence, a next command and the documented exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fabfile._operator import typed

ROOT = Path(__file__).resolve().parents[2]
FAB = Path(sys.executable).parent / "fab"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository with a ``var`` of its own, and with an AWS API that nobody serves."""
    for name in ("fabfile", "scripts", "lab"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "inventory", tmp_path / "inventory", symlinks=True)
    fleet = tmp_path / "inventory" / "lab" / "group_vars" / "all" / "fleet.yml"
    fleet.write_text(fleet.read_text().replace("127.0.0.1:4566", "127.0.0.1:9"))
    credentials = tmp_path / "var" / "lab" / "aws" / "credentials"
    credentials.parent.mkdir(parents=True)
    credentials.write_text("[lab]\naws_access_key_id = test\naws_secret_access_key = test\n")
    return tmp_path


def fab(
    *words: str, end: str = "", env: str = "lab", root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a task as an operator does; ``end`` is redirections, in the shell's words."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {end}', "sh", str(FAB), *words],
        cwd=root,
        env=os.environ | {"FLOTILLA_ENV": env, "PYTHONPATH": f"{root}/scripts:{root}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "'nope'"),
        (["fleet.status", "--nope"], "'--nope'"),
        (["fleet.run"], "'command'"),
        (["fleet.run", "uptime"], "--on"),
        (["fleet.run", "uptime", "--on"], "--on"),
        (["deploy.run"], "--version"),
        (["lb.patch", "--restrat"], "'--restrat'"),
        (["fleet.run", "uptime", "--on", "app", "--seconds", "x"], "--seconds is 'x'"),
        (["fleet.logs", "app", "--lines", "x"], "--lines is 'x'"),
        (["lab.fault", "app-1", "kill", "--option", "x"], "--option is 'x'"),
        (["redis.patch", "redis-2"], "redis-2"),
        (["redis.rebuild"], "'host'"),
    ],
)
def test_a_wrong_command_line_is_a_bad_option_and_never_a_traceback(
    words: list[str], said: str
) -> None:
    done = fab(*words, "--json") if words[-1] != "--on" else fab(*words)
    assert done.returncode == 5
    assert said in done.stderr
    # The task's own words know better where they can tell an option's form.
    wanted = ["--list"] if words[0] == "nope" else [f"--help {words[0]}", " ".join(words[:3])]
    assert any(f"Next: fab {one}" in done.stderr for one in wanted)
    assert "Traceback" not in done.stderr
    if words[-1] != "--on":
        assert json.loads(done.stdout)["error"]["exit_code"] == 5


@pytest.mark.parametrize(
    "task", ["fleet.run", "fleet.logs", "deploy.run", "lab.fault", "redis.patch"]
)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_told_on_either_side_of_a_task(task: str, word: str) -> None:
    behind, before = fab(task, word), fab("--help", task)
    assert (behind.returncode, behind.stderr) == (0, "")
    assert behind.stdout == before.stdout
    assert f" {task} " in behind.stdout.splitlines()[0]


def test_a_result_nobody_reads_is_no_error() -> None:
    done = fab("audit.list", "--json", end="| head -c 0")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_result_that_cannot_be_written_is_said() -> None:
    done = fab("audit.list", "--json", end="> /dev/full")
    assert done.returncode == 1
    assert "could not be written to stdout" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_stdout_does_not_hide_what_went_wrong() -> None:
    done = fab("audit.list", "--json", end="> /dev/full", env="nope")
    assert done.returncode == 5
    assert "there is no environment 'nope'" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_without_a_terminal_or_a_stdout_nothing_breaks(closed: str) -> None:
    done = fab("demo.run", end=closed)
    assert done.returncode == 3
    assert "fab demo.run --yes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # To timeout(1), 0 s is for ever.
        (["fleet.run", "uptime", "--on", "app", "--seconds=0"], "--seconds is 0"),
        (["fleet.run", "", "--on", "app"], "the command is empty"),
        (["fleet.logs", "app", "--lines=-3"], "--lines is -3"),
        (["audit.list", "--last=0"], "--last is 0"),
        (["mysql.switchover", "--writers=-1"], "--writers is -1"),
        (["fleet.provision", "--shrink", "redsi"], "--shrink is redsi"),
        (["images.bake", "--only", ""], "there is no image ''"),
        (["app.release", "--version", ""], "version ''"),
        (["lb.maintenance"], "say --on or --off"),
        (["lb.maintenance", "--on", "--off"], "say --on or --off"),
        (["lb.maintenance", "--on", "--reason", "x" * 201], "--reason has 201 letters"),
        (["app.release", "--version", "v1", "--artifact", "s3://x"], "is no s3://BUCKET/KEY"),
    ],
)
def test_a_value_that_means_nothing_is_refused_before_anything_is_asked(
    words: list[str], said: str, checkout: Path
) -> None:
    done = fab(*words, "--json", root=checkout)
    assert done.returncode == 5
    assert said in json.loads(done.stdout)["error"]["what"]
    assert "Nothing was" in done.stderr


def test_lines_of_the_audit_file_that_are_no_lines_are_counted(checkout: Path) -> None:
    good = {"at": "2026-01-01T00:00:00", "by": "me", "command": "fab x.y", "result": "done"}
    path = checkout / "var" / "lab" / "audit.jsonl"
    path.write_text(f"{json.dumps(good)}\nx}}\n[1]\n{{}}\n" + '{"at": 1')
    done = fab("audit.list", "--json", root=checkout)
    assert json.loads(done.stdout) == [good]
    assert "4 lines cannot be read. Next: fab audit.verify" in done.stderr


def test_a_folder_where_a_file_should_be_is_named(checkout: Path) -> None:
    (checkout / "var" / "lab" / "audit.jsonl").mkdir()
    done = fab("audit.list", "--json", root=checkout)
    assert json.loads(done.stdout)["error"]["exit_code"] == done.returncode == 1
    assert "audit.jsonl: Is a directory" in done.stderr


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("fab mysql.switchover", {"to": None, "writers": None}),
        ("fab mysql.switchover --to mysql-2 --writers 0", {"to": "mysql-2", "writers": 0}),
        ("fab mysql.failover --accept-loss", {"to": "", "accept_loss": True, "yes": False}),
        ("fab lb.patch --restart", {"restart": True}),
        ("fab lb.maintenance --on --reason 'a b; c'", {"on": True, "reason": "a b; c"}),
        ("fab mysql.pause --reason 'a b; c'", {"reason": "a b; c"}),
        ("fab redis.patch --restart", {"restart": True}),
    ],
)
def test_a_command_can_be_typed_again_with_all_that_was_given(line: str, given: dict) -> None:
    assert typed(line.split()[1], **given) == line

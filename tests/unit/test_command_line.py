"""A command line that is wrong gets one sentence, a next command and the documented exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAB = Path(sys.executable).parent / "fab"


def fab(*words: str, end: str = "", env: str = "lab") -> subprocess.CompletedProcess[str]:
    """Run a task as an operator does; ``end`` is redirections, in the shell's words."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {end}', "sh", str(FAB), *words],
        cwd=ROOT,
        env=os.environ | {"FLOTILLA_ENV": env},
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
        (["fleet.run", "uptime", "--on"], "--on"),
        (["fleet.run", "uptime", "--on", "app", "--seconds", "x"], "--seconds is 'x'"),
        (["fleet.logs", "app", "--lines", "x"], "--lines is 'x'"),
        (["lab.fault", "app-1", "kill", "--option", "x"], "--option is 'x'"),
    ],
)
def test_a_wrong_command_line_is_a_bad_option_and_never_a_traceback(
    words: list[str], said: str
) -> None:
    done = fab(*words, "--json") if words[-1] != "--on" else fab(*words)
    assert done.returncode == 5
    assert said in done.stderr
    assert "Next: fab " in done.stderr
    assert "Traceback" not in done.stderr
    if words[-1] != "--on":
        assert json.loads(done.stdout)["error"]["exit_code"] == 5


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

"""The script for schedulers: every command of the cluster, and nothing is guessed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fabfile import mysql
from flotilla import environment

SCRIPT = environment.root() / "scripts" / "mysql_failover.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ["failover", "--accept-los"],
        ["failover", "--a"],
        ["--ye", "failover"],
        ["rebuild"],
        ["pause"],
        ["promote"],
        ["switchover", "--writers", "many"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_could_be_misread_is_refused(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 5
    assert "Next: " in done.stderr
    assert not done.stdout


def test_every_task_of_the_cluster_has_its_command() -> None:
    listed = run("--help").stdout.partition("{")[2].partition("}")[0].split(",")
    tasks = {name.replace("_", "-") for name, one in vars(mysql).items() if hasattr(one, "body")}
    assert tasks <= set(listed)

"""Real processes: what a command leaves behind goes with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flotilla.leash import leashed
from flotilla.wait import until

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# A worker as Ansible's are: a session of its own, deaf to SIGTERM, and it says who it is.
WORKER = "trap '' TERM; echo $$ >> {pids}; sleep 600 & echo $! >> {pids}; wait; wait"
COMMAND = 'setsid sh -c "{worker}" & setsid sh -c "{worker}" & echo begun; wait'
STARTER = """
import sys
from pathlib import Path
from flotilla.leash import leashed
with leashed(["sh", "-c", sys.argv[1]], cwd=Path("/"), env=dict()) as process:
    for line in process.stdout:
        print(line, end="", flush=True)
"""
SECONDS = 30


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_output_and_exit_code_are_the_command_s(tmp_path: Path) -> None:
    with leashed(["sh", "-c", "echo one; echo two >&2; exit 7"], cwd=tmp_path, env={}) as process:
        assert process.stdout
        assert process.stdout.read() == "one\ntwo\n"
    assert process.returncode == 7


def test_a_command_that_a_signal_ended_says_which(tmp_path: Path) -> None:
    with leashed(["sh", "-c", "kill -KILL $$"], cwd=tmp_path, env={}) as process:
        pass
    assert process.returncode == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with leashed([str(tmp_path / "none")], cwd=tmp_path, env={}) as process:
        assert process.stdout
        assert process.stdout.read() == f"{tmp_path}/none: No such file or directory\n"
    assert process.returncode == 127


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_command_s_to_answer(tmp_path: Path, number: signal.Signals) -> None:
    command = "trap 'exit 99' INT TERM; echo ready; sleep 600 & wait; wait"
    with leashed(["sh", "-c", command], cwd=tmp_path, env={}) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(SECONDS) == 99


def test_what_a_command_leaves_behind_lives_on_after_its_own_end(tmp_path: Path) -> None:
    """As ssh's shared connections do."""
    command = "setsid sleep 600 >/dev/null 2>&1 & echo $!"
    with leashed(["sh", "-c", command], cwd=tmp_path, env={}) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
    try:
        assert lives(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_lives_on_when_the_whole_group_is_killed(
    tmp_path: Path, number: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    command = COMMAND.format(worker=WORKER.format(pids=pids).replace("$", "\\$"))
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, command],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout
    assert starter.stdout.readline() == "begun\n"
    until(lambda: pids.exists() and len(pids.read_text().split()) == 4, seconds=SECONDS)
    begun = [int(pid) for pid in pids.read_text().split()]
    assert all(map(lives, begun))
    os.killpg(starter.pid, number)
    starter.wait(SECONDS)
    starter.stdout.close()
    try:
        until(lambda: not any(map(lives, begun)), seconds=SECONDS)
    finally:
        for pid in filter(lives, begun):
            os.kill(pid, signal.SIGKILL)

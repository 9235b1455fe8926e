"""A command that goes behind all others is still the operator's: signals, exit code, end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
BEGIN = """\
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from flotilla.priority import go_behind
print("asked", end=" ")
go_behind()
print(os.getpid(), os.getsid(0), open("/proc/self/autogroup").read().split()[-1], flush=True)
"""


@contextmanager
def begun(rest: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process that was started, and the one that goes on."""
    command = [sys.executable, "-c", BEGIN + rest, str(SCRIPTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        # Once: what was in the buffer before is not printed by both.
        assert said[0] == "asked"
        pid, session, weight = (int(word) for word in said[1:])
        assert pid == session != process.pid
        assert weight == 19
        try:
            yield process, pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ("sys.exit(3)", 3),
        ("", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
        ("raise ValueError", 1),
    ],
)
def test_the_exit_code_is_the_command_s(rest: str, code: int) -> None:
    with begun(rest) as (process, _):
        assert process.wait(20) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_it(number: signal.Signals) -> None:
    rest = f"""
signal.signal({number.value}, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(30)
"""
    with begun(rest) as (process, _):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(20) == 7


def test_it_is_told_when_who_waits_for_it_is_killed() -> None:
    with begun("time.sleep(30)") as (process, pid):
        watched = os.pidfd_open(pid)
        process.kill()
        assert select.select([watched], [], [], 20)[0], "it goes on, and nobody knows"
        os.close(watched)

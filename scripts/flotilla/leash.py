"""A command that ends with whoever started it, and takes along what it started itself.

Ansible's workers have sessions of their own: a kill of the terminal's process group leaves them,
twelve of 80 MB, waiting for ever. So the command runs below a process in a session of its own that
adopts what the command leaves behind (prctl(2), PR_SET_CHILD_SUBREAPER), and that hears by the end
of a pipe that we are gone, however we went.

This file is also that process; it imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
# How long the command may take to end what it has begun.
_END_SECONDS = 5.0


@contextmanager
def leashed(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """The running command; its output is on ``stdout``, and it has no input.

    Its exit code is the process's, 128 and the signal's number where one ended it. SIGINT and
    SIGTERM to the process go to the command.
    """
    heard, held = os.pipe()
    try:
        with subprocess.Popen(
            [sys.executable, "-I", __file__, str(heard), *command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(heard,),
            start_new_session=True,
        ) as process:
            yield process
    finally:
        os.close(heard)
        os.close(held)


def main() -> int:
    """Run the command until it ends, or until the other end of the pipe does."""
    heard, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def passed_on(number: int, _: object) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    # Before there is a command to tell: a signal in between would end this process alone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, passed_on)
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    for kept in early:
        child.send_signal(kept)
    ended = os.pidfd_open(child.pid)
    events = select.poll()
    for descriptor in (heard, ended):
        events.register(descriptor, select.POLLIN)
    if all(descriptor != ended for descriptor, _ in events.poll()):
        end_children(_END_SECONDS)
        return 128 + signal.SIGKILL
    code = child.wait()
    return code if code >= 0 else 128 - code


def end_children(seconds: float) -> None:
    """End every process below this one; those that have not by then are killed."""
    deadline = time.monotonic() + seconds
    while children := _children():
        late = time.monotonic() > deadline
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _children() -> list[int]:
    mine = str(os.getpid())
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if parent == mine and state != "Z":
                found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())

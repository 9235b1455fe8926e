"""Commands as an operator types them: each one a process of its own, judged by its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guests import REPO, until

FAB = Path(sys.executable).with_name("fab")
SECONDS = 280
_INTERFERE = Path(__file__).with_name("interfere.py")


def typed(
    *arguments: str, code: int | tuple[int, ...] = 0, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a task; fails unless it exits with ``code``, or one of them."""
    done = subprocess.run(
        [FAB, *arguments],
        cwd=REPO,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=SECONDS,
        check=False,
    )
    line = f"fab {' '.join(arguments)}"
    told = f"{line}: exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    assert done.returncode in ((code,) if isinstance(code, int) else code), told
    return done


def fab(*arguments: str, code: int = 0) -> Any:
    """Run a task with --json: what it printed, parsed. Fails unless it exits with ``code``."""
    return json.loads(typed(*arguments, "--json", code=code).stdout)


class Run:
    """A task under way, with something that happens to it at a moment of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ends(self) -> tuple[int, Any, str]:
        """Exit code (negative: the signal), the JSON it printed or None, and its stderr."""
        output, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, json.loads(output) if output.strip() else None, said

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time in which a task that stops itself (STOP) stands still; afterwards it goes on."""
        until(self._stands_still, SECONDS, "the task stands still")
        yield
        self.process.send_signal(signal.SIGCONT)

    def _stands_still(self) -> bool:
        assert self.process.poll() is None, f"it ended before its moment: {self.ends()}"
        return "(stopped)" in Path(f"/proc/{self.process.pid}/status").read_text()

    def exits(self, code: int) -> Any:
        """The JSON it printed; fails unless it exits with ``code`` and the moment came."""
        returned, told, said = self.ends()
        assert returned == code, f"exit {returned}, not {code}\n{told}\n{said}"
        assert "interfered: " in said, f"the moment never came\n{said}"
        return told


KILL = "kill -KILL $PPID"
STOP = "kill -STOP $PPID"


@contextmanager
def interfered(
    moment: str,
    command: str,
    *arguments: str,
    delay: float | None = None,
    every: bool = False,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Run]:
    """Run a task with --json, and ``command`` in a shell at the first ``moment`` (interfere.py), or
    at ``every`` one.

    With ``delay`` the task goes on meanwhile, and the command comes so many seconds later;
    ``settings`` are keys of fleet.yml that are different for it. Whatever still runs at the end of
    the block is killed.
    """
    later = [] if delay is None else ["--delay", str(delay)]
    later += ["--every"] if every else []
    later += [f"--set={key}={value}" for key, value in (settings or {}).items()]
    process = subprocess.Popen(
        [sys.executable, _INTERFERE, *later, moment, command, *arguments, "--json"],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Run(process)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            os.kill(process.pid, signal.SIGCONT)
        process.communicate()

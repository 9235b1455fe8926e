"""Run the machine's tools and turn their failures into errors that name the command and what it said."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from lab.errors import LabError


def run(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 120.0, check: bool = True) -> str:
    """Output of `argv`.

    Raises `LabError` with the tool's own message when it fails (unless `check` is off) or takes longer than
    `timeout` seconds.
    """
    try:
        # Without input a tool must not read the operator's terminal.
        done = subprocess.run(
            list(argv), input=stdin or "", capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed", next_command="fab lab.up (it lists what is missing)") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(argv)[:200]}` did not end within {timeout:g} s") from error
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise LabError(f"`{' '.join(argv)[:200]}` exited {done.returncode}: {said}")
    return done.stdout


def tried(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 120.0) -> bool:
    """Whether `argv` ran and succeeded; for clean-up, where a thing already gone is as good."""
    try:
        run(argv, stdin=stdin, timeout=timeout)
    except LabError:
        return False
    return True

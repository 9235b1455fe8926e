"""Run the machine's tools and turn their failures into errors that name the command and what it
said.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError


def replace(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file at once: a reader, also after a crash or on a full disk, sees old or new."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.touch(mode=mode)
    fresh.chmod(mode)
    fresh.write_text(text)
    fresh.rename(path)


def run(
    argv: Sequence[str], *, stdin: str | None = None, timeout: float = 120.0, check: bool = True
) -> str:
    """Output of `argv`.

    Raises `LabError` with the tool's own message when it fails (unless `check` is off) or takes
    longer than `timeout` seconds. However this ends, nothing that `argv` started goes on.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,  # without input a tool must not read the operator's terminal
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise LabError(
            f"{argv[0]} is not installed", next_command="fab lab.up (it lists what is missing)"
        ) from error
    shown = " ".join(argv)[:300]
    try:
        out, err = process.communicate(stdin or "", timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _end(process)
        raise LabError(f"`{shown}` did not end within {timeout:g} s") from error
    except BaseException:
        _end(process)
        raise
    if check and process.returncode != 0:
        raise LabError(f"`{shown}` exited {process.returncode}: {(err or out).strip()[-800:]}")
    return out


def tried(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 120.0) -> bool:
    """Whether `argv` ran and succeeded; for clean-up, where a thing already gone is as good."""
    try:
        run(argv, stdin=stdin, timeout=timeout)
    except LabError:
        return False
    return True


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

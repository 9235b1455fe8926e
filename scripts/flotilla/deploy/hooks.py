"""Commands of the operator's own, around a deploy and around each host.

They run on this machine, without a shell, with what they need to know in FLOTILLA_* variables. One
before something may forbid it; one after something can only be noted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.settings import Settings

# What a hook that is ended may still use to clean up, in seconds.
_GRACE_SECONDS = 2.0
_TAIL = 4096


class Around(Protocol):
    """What is done before and after a host is changed; ``Hooks.around`` is one."""

    def __call__(
        self, host: str, version: str | None, *, back: bool = False
    ) -> AbstractContextManager[None]:
        """Entered before ``host`` is brought to ``version``, left when that is over."""


def nothing(
    host: str,  # noqa: ARG001
    version: str | None,  # noqa: ARG001
    *,
    back: bool = False,  # noqa: ARG001
) -> AbstractContextManager[None]:
    """No hooks."""
    return nullcontext()


class Hooks:
    """The hooks of fleet.yml for one deploy. ``notes`` are those that failed and forbade nothing.

    Safe for threads: hosts of a batch run theirs at the same time.
    """

    def __init__(self, settings: Settings, deploy_id: str, version: str) -> None:
        self._hooks = settings.deploy.hooks
        self._root = settings.root
        self._told = {
            "FLOTILLA_ENV": settings.env,
            "FLOTILLA_DEPLOY_ID": deploy_id,
            "FLOTILLA_VERSION": version,
            "FLOTILLA_HOST": "",
            "FLOTILLA_OUTCOME": "",
        }
        self.notes: list[str] = []

    def before(self) -> None:
        """Before any host is touched. Raises Refused with what the hook said."""
        if why := self._first_failure("before", self._hooks.before):
            raise Refused(
                why,
                why="a hook before the deploy says whether it may begin",
                untouched="No host was touched",
                next="see fleet.deploy.hooks.before in fleet.yml",
            )

    def after(self, outcome: str) -> None:
        """When the deploy has ended, with its result."""
        self._noted("after", self._hooks.after, FLOTILLA_OUTCOME=outcome)

    @contextmanager
    def around(self, host: str, version: str | None, *, back: bool = False) -> Iterator[None]:
        """While ``host`` is brought to ``version``. Raises HostFailed when it must not be touched.

        On the way ``back`` nothing may forbid it: two releases in service are worse.
        """
        told = {"FLOTILLA_HOST": host, "FLOTILLA_VERSION": version or ""}
        if why := self._first_failure("before_host", self._hooks.before_host, **told):
            if not back:
                raise HostFailed(f"{host}: {why}", next="see fleet.deploy.hooks in fleet.yml")
            self.notes.append(f"{host}: {why}")
        try:
            yield
        except FlotillaError:
            self._noted("after_host", self._hooks.after_host, FLOTILLA_OUTCOME="failed", **told)
            raise
        self._noted("after_host", self._hooks.after_host, FLOTILLA_OUTCOME="done", **told)

    def _noted(self, phase: str, commands: Sequence[Sequence[str]], **told: str) -> None:
        for command in commands:
            if why := self._failure(phase, command, told):
                host = told.get("FLOTILLA_HOST")
                self.notes.append(f"{host}: {why}" if host else why)

    def _first_failure(
        self, phase: str, commands: Sequence[Sequence[str]], **told: str
    ) -> str | None:
        """The first one that fails keeps those behind it from running."""
        return next((why for one in commands if (why := self._failure(phase, one, told))), None)

    def _failure(self, phase: str, command: Sequence[str], told: Mapping[str, str]) -> str | None:
        environment = {**os.environ, **self._told, **told, "FLOTILLA_PHASE": phase}
        said = run(command, environment, self._root, self._hooks.deadline_seconds)
        return f"the {phase} hook {command[0]} {said}" if said else None


def run(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float
) -> str | None:
    """Why a command did not succeed within ``seconds``, with its last line; None when it did.

    It has a session of its own: Ctrl-C stops the deploy and not a hook half-way, and at the
    deadline everything it started ends with it.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"did not end within {seconds:g} s"
        if code == 0:
            return None
        output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
        lines = output.read().decode(errors="replace").strip().splitlines()
        return f"failed with exit code {code}" + (f": {lines[-1]}" if lines else "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and everything it started that did not leave its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()

"""The one door to Packer: packer-py's command lines, with what it cannot do added.

packer-py 0.3.0 holds all output back until the end, has no time limit, no way to stop a build and
no lists in its arguments. The override below replaces its subprocess and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packerpy import PackerExecutable

from flotilla.errors import FlotillaError, Refused

OLDEST = (1, 6, 6)
# From here on the amazon plugin is a program of its own, which packer init installs.
PLUGINS_APART = (1, 7, 0)

# How long Packer gets to terminate its host and delete what it made, after an interrupt.
STOP_SECONDS = 60
_POLL_SECONDS = 0.2


class StoppedError(FlotillaError):
    """A build was stopped before its end, by its time limit or by the caller."""


class Packer(PackerExecutable):  # type: ignore[misc]  # packer-py has no types
    """Packer on PATH, run in ``folder`` with ``variables`` as its environment.

    ``say`` gets each line of output as it comes. A build ends after ``seconds``, or when ``stop``
    is set: Packer is interrupted, so that it removes what it made, and killed with all its children
    if that takes longer than STOP_SECONDS.
    """

    def __init__(
        self,
        folder: Path,
        variables: Mapping[str, str],
        *,
        say: Callable[[str], None] = lambda _line: None,
        seconds: float = 60,
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(executable_path="packer", machine_readable=False)
        self._folder = folder
        self._variables = dict(variables)
        self._say = say
        self._seconds = seconds
        self._stop = stop or threading.Event()

    def release(self) -> tuple[int, ...]:
        """Packer's version. Raises Refused when there is none, or one that is too old."""
        try:
            _, out, _ = self.version()
        except FileNotFoundError as error:
            raise Refused(
                "packer is not installed", untouched="Nothing was changed", next="make setup"
            ) from error
        found = re.search(r"(\d+)\.(\d+)\.(\d+)", out.decode(errors="replace"))
        release = tuple(int(part) for part in found.groups()) if found else (0,)
        if release < OLDEST:
            raise Refused(
                f"packer is {'.'.join(map(str, release))}; the templates need 1.6.6 or newer",
                untouched="Nothing was changed",
                next="make setup",
            )
        return release

    def execute_cmd(
        self, packer_cmd: str, template: str | None = None, **kwargs: Any
    ) -> tuple[int, bytes, bytes]:
        """packer-py's own signature; every command it knows comes through here.

        Returns exit code, all output, and nothing for stderr, which is part of the output.
        """
        # A job of a shell in the background has SIGINT ignored, and so would Packer: it could not
        # be asked to stop, and what it made at EC2 would stay.
        argv = ["env", "--default-signal=INT", self.configuration[self.PATH]]
        argv += [packer_cmd, *arguments(kwargs)]
        argv += [template] if template else []
        process = subprocess.Popen(
            argv,
            cwd=self._folder,
            env=self._variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches us alone, and a kill reaches Ansible and SSH too.
            start_new_session=True,
        )
        lines: list[bytes] = []
        reader = threading.Thread(target=self._read, args=(process, lines), daemon=True)
        reader.start()
        try:
            code = self._wait(process)
        finally:
            _end_group(process)
            reader.join(timeout=5)
        return code, b"".join(lines), b""

    def _read(self, process: subprocess.Popen[bytes], lines: list[bytes]) -> None:
        for line in process.stdout or ():
            lines.append(line)
            self._say(line.decode(errors="replace").rstrip())

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        deadline = time.monotonic() + self._seconds
        while (code := process.poll()) is None:
            if self._stop.is_set() or time.monotonic() > deadline:
                # To the whole group, as Ctrl-C would be: Packer is two processes, and the outer one
                # (panicwrap) does not hand a signal on.
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    _end_group(process)
                raise StoppedError(
                    "packer was stopped"
                    + ("" if self._stop.is_set() else f": no end after {self._seconds:g} s")
                )
            self._stop.wait(_POLL_SECONDS)
        return code


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Packer's command line options: True is a flag, a list repeats, None and False leave out."""
    found = []
    for key, value in options.items():
        name = f"-{key.replace('_', '-')}"
        if value is True:
            found.append(name)
        elif isinstance(value, (list, tuple)):
            found += [f"{name}={one}" for one in value]
        elif value is not None and value is not False:
            found.append(f"{name}={value}")
    return found


def artifact(manifest: Path, region: str) -> str:
    """The image id in a manifest that Packer wrote. Raises FlotillaError when there is none."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        run = content["last_run_uuid"]
        ids = [
            build["artifact_id"] for build in content["builds"] if build["packer_run_uuid"] == run
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FlotillaError(f"packer left no manifest that can be read: {error}") from error
    return artifact_of(ids, region)


def artifact_of(ids: Sequence[str], region: str) -> str:
    """``ids`` as manifests have them: "eu-central-1:ami-1,eu-west-1:ami-2"."""
    images = dict(pair.split(":", 1) for one in ids for pair in one.split(",") if ":" in pair)
    if region not in images:
        raise FlotillaError(f"packer's manifest has no image for {region}: {', '.join(ids)}")
    return images[region]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Nothing that a build started outlives it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()

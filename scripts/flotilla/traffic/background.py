"""Traffic in a process of its own, so that the work it watches does not slow it down."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self, TextIO, cast

from flotilla.errors import FlotillaError

FINISH_SECONDS = 60


class Background:
    """``with Background("--url", url, "--rate", "50") as traffic: ...; traffic.stop()``.

    Takes the options of ``python -m flotilla.traffic``. Leaving the block ends the process.
    """

    def __init__(self, *arguments: str) -> None:
        # A file, because nobody reads a pipe while the traffic runs.
        self._stderr = cast("TextIO", tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flotilla.traffic", "--until-stdin-closes", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            # Of its own, so that its priority is: see ``flotilla.priority``.
            start_new_session=True,
        )
        self._report: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def mark(self, phase: str) -> None:
        """Requests from now on belong to ``phase``. Raises FlotillaError when the process ended."""
        stdin = cast("TextIO", self._process.stdin)
        try:
            stdin.write(f"{phase}\n")
            stdin.flush()
        except OSError as error:
            raise self._ended_early() from error

    def stop(self) -> dict[str, Any]:
        """Send no more, wait for the last answers, and return the report."""
        if self._report is None:
            try:
                output, _ = self._process.communicate(timeout=FINISH_SECONDS)
                self._report = json.loads(output)
            except (subprocess.TimeoutExpired, ValueError) as error:
                raise self._ended_early() from error
        return self._report

    def _ended_early(self) -> FlotillaError:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().strip()
        return FlotillaError(f"the traffic generator gave no report: {said or 'no message'}")

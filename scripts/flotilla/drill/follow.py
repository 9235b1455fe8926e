"""Follow the journal of a deploy while it is written, by whatever process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_POLL_SECONDS = 0.05


class Follower:
    """``with Follower(folder, heard):`` gives every line of journals begun meanwhile to ``heard``.

    Lines come from a thread, in order, each once. An error that ``heard`` raises ends the following
    and is raised at the end of the block.
    """

    def __init__(self, folder: Path, heard: Callable[[dict[str, Any]], None]) -> None:
        self._folder = folder
        self._heard = heard
        self._known = set(folder.glob("*.jsonl"))
        self._read: dict[Path, int] = {}
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.wait(_POLL_SECONDS):
                self._look()
            self._look()
        except Exception as error:
            # Raised at the end of the block, in the thread that can act on it.
            self._error = error

    def _look(self) -> None:
        for path in sorted(set(self._folder.glob("*.jsonl")) - self._known):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                *lines, _ = file.read().split(b"\n")
            self._read[path] = self._read.get(path, 0) + sum(len(line) + 1 for line in lines)
            for line in lines:
                self._heard(json.loads(line))

"""What a failover was about to do and did: lines of JSON, each on the disk before the next step.

Whoever was killed goes on from here under the same term; others need no journal, as the record says
how far the term has come and every step may be done again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flotilla.errors import FlotillaError

Line = dict[str, Any]


class Journal:
    """One failover's file. Safe for threads; ``now`` gives seconds since the epoch."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self.path = path
        self._now = now
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, folder: Path, term: int, now: Callable[[], float]) -> Journal:
        """The journal of a term, continued where there is one. Raises FlotillaError."""
        path = folder / f"term-{term:06d}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        except OSError as error:
            raise FlotillaError(
                f"the journal {path} cannot be written ({error.strerror})",
                "a failover that is cut off is continued from its journal",
                "Nothing was changed",
                f"df -h {folder}",
            ) from error
        return cls(path, now)

    @classmethod
    def newest(cls, folder: Path, now: Callable[[], float]) -> Journal | None:
        """The journal of the highest term that has a line, None where there is none."""
        for path in sorted(folder.glob("term-*.jsonl"), reverse=True):
            journal = cls(path, now)
            if journal.lines():
                return journal
        return None

    @property
    def is_finished(self) -> bool:
        """Whether its last line is an end: done, refused or superseded."""
        lines = self.lines()
        return bool(lines) and lines[-1]["event"] == "end"

    def lines(self) -> list[Line]:
        """What was written; a last line that a power cut tore is left out."""
        found = []
        for text in self.path.read_text().splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                break
        return found

    def write(self, event: str, **fields: Any) -> None:
        """Add a line; it has reached the disk when this returns."""
        text = json.dumps({"at": round(self._now(), 6), "event": event, **fields})
        with self._lock, self.path.open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

"""The lab's logs: one JSON line an event, one a call."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


class Journal(AbstractContextManager["Journal"]):
    """`lab.jsonl` (what happened) and `api.jsonl` (who called what). Any thread may write."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._events = (directory / "lab.jsonl").open("a")
        self._calls = (directory / "api.jsonl").open("a")

    def log(self, event: str, fields: Mapping[str, Any]) -> None:
        """Something happened in the lab."""
        self._write(self._events, {"time": round(time.time(), 3), "event": event, **fields})

    def call(self, fields: Mapping[str, Any]) -> None:
        """Somebody called the API."""
        self._write(self._calls, fields)

    def _write(self, out: Any, fields: Mapping[str, Any]) -> None:
        with self._lock:
            if not out.closed:
                out.write(json.dumps(fields, default=str) + "\n")
                out.flush()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._events.close()
            self._calls.close()

"""What a deploy did, written before and after each step: ``var/<env>/deploys/<id>.jsonl``."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.settings import Settings

_FOLDER = "deploys"


class Journal:
    """Lines of JSON, each on the disk before the next step is taken. Safe for threads."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls,
        settings: Settings,
        version: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Journal:
        """A new journal. Raises FlotillaError when the disk does not take it."""
        name = f"{clock().strftime('%Y%m%dT%H%M%S')}-{version}"
        path = settings.scratch / _FOLDER / f"{name}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=False)
        except OSError as error:
            raise FlotillaError(
                f"the journal {path} cannot be written ({error.strerror})",
                why="a deploy that is cut off is continued from its journal",
                untouched="Nothing was changed",
                next=f"df -h {path.parent}",
            ) from error
        return cls(path, clock)

    @classmethod
    def reopen(
        cls,
        settings: Settings,
        deploy_id: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Journal:
        """The journal of a deploy that was begun here, the newest one without ``deploy_id``.

        Raises Refused when there is none, BadOption with those that exist for an unknown id.
        """
        every = cls.all(settings, clock)
        found = [journal for journal in every if deploy_id in {"", journal.id}]
        if found:
            return found[0]
        if every:
            raise BadOption(
                f"there is no deploy {deploy_id!r}; there are: "
                + ", ".join(journal.id for journal in every[:5]),
                untouched="Nothing was changed",
                next="fab deploy.history",
            )
        raise Refused(
            f"no deploy was begun from here: {settings.scratch / _FOLDER} has no journal",
            untouched="Nothing was changed",
            next="fab deploy.run --version V --adopt, which needs no journal",
        )

    @classmethod
    def all(
        cls, settings: Settings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> list[Journal]:
        """Every journal with at least one line, the newest first."""
        return list(cls.each(settings, clock))

    @classmethod
    def each(
        cls, settings: Settings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Iterator[Journal]:
        """The same, read one after the other: there may be hundreds."""
        for path in sorted((settings.scratch / _FOLDER).glob("*.jsonl"), reverse=True):
            if read(path):
                yield cls(path, clock)

    def lines(self) -> list[dict[str, Any]]:
        """What was written so far."""
        return read(self.path)

    @property
    def id(self) -> str:
        """``<time>-<version>``."""
        return self.path.stem

    def write(self, event: str, **fields: Any) -> None:
        """Add a line; it has reached the disk when this returns."""
        line = json.dumps({"at": self._clock().isoformat(), "event": event, **fields})
        with self._lock, self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class Entry:
    """One deploy of the past. ``result`` is "cut off" when its journal has no end."""

    id: str
    version: str
    began: str
    by: str
    result: str
    seconds: float | None
    served: int | None
    failed: int | None

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {name: getattr(self, name) for name in self.__slots__}


def history(settings: Settings) -> list[Entry]:
    """Every deploy that was run from this machine, newest first."""
    paths = sorted((settings.scratch / _FOLDER).glob("*.jsonl"), reverse=True)
    return [entry for path in paths if (entry := _entry(path))]


def _entry(path: Path) -> Entry | None:
    lines = read(path)
    if not lines:
        return None
    first, last = lines[0], lines[-1]
    end = last if last["event"] == "end" else {}
    return Entry(
        id=path.stem,
        version=str(first.get("version", "")),
        began=str(first["at"]),
        by=str(first.get("by", "")),
        result=str(end.get("result", "cut off")),
        seconds=end.get("seconds"),
        served=end.get("served"),
        failed=end.get("failed"),
    )


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, up to the first that cannot be read: one that was cut off."""
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not (isinstance(line, dict) and {"at", "event"} <= line.keys()):
            break
        lines.append(line)
    return lines

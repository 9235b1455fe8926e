"""What to tell an operator while a playbook runs: its output in a line a play, and what failed.

Fed with Ansible's default callback, line by line. Nothing is told of a task that changed nothing,
failed nowhere and was quick.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# A task that took longer is named, so that nobody wonders whether the run hangs.
SLOW_SECONDS = 10.0

_HEADER = re.compile(r"^(?P<kind>PLAY|TASK|RUNNING HANDLER) \[(?P<name>.*)\] \**$")
_RESULT = re.compile(r"^(?P<how>ok|changed|skipping|fatal|failed): \[(?P<host>[^\]\s]+)[^\]]*\]")
_FAILURE = re.compile(r"^(fatal|failed): \[|^\[ERROR\]:")
_END = re.compile(r"^(ok|changed|skipping|included): |^(PLAY|TASK|RUNNING HANDLER) ")


@dataclass(slots=True)
class _Part:
    """A play, or a task of it, since ``begun`` (seconds on the caller's clock)."""

    name: str = ""
    begun: float = 0.0
    seen: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


class Progress:
    """Feed it lines; it answers with what to print. ``failures`` are the lines of failed tasks."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._play = _Part()
        self._task = _Part()
        self._tasks = 0
        self._changes = 0
        self._is_failing = False
        self._mark = 0

    def feed(self, line: str, now: float) -> list[str]:
        """Take one line of output at ``now`` (seconds, any clock that only moves forward)."""
        header = _HEADER.match(line)
        if header and header["kind"] == "PLAY":
            return self._next_play(header["name"], now)
        if header or line.startswith("PLAY RECAP"):
            told = self._next_task(header["name"] if header else "", now)
            return told + (self._next_play("", now) if not header else [])
        self._note(line)
        return []

    def _next_play(self, name: str, now: float) -> list[str]:
        told = self._next_task("", now)
        play, tasks, changes = self._play, self._tasks, self._changes
        self._play, self._tasks, self._changes = _Part(name, now), 0, 0
        if not play.name or not tasks:
            return told
        end = f"FAILED on {_names(play.failed)}" if play.failed else "ok"
        what = f"{_count(tasks, 'task')} on {_count(len(play.seen), 'host')}, {changes} changed"
        return [*told, f"{play.name}: {what} ... {end} {now - play.begun:.1f} s"]

    def _next_task(self, name: str, now: float) -> list[str]:
        task = self._task
        self._task, self._is_failing, self._mark = _Part(name, now), False, len(self.failures)
        if not task.name:
            return []
        self._tasks += 1
        self._changes += len(task.changed)
        self._play.seen |= task.seen
        self._play.failed |= task.failed
        parts = [f"changed {_names(task.changed)}"] if task.changed else []
        parts += [f"FAILED {_names(task.failed)}"] if task.failed else []
        seconds = now - task.begun
        if not parts and seconds < SLOW_SECONDS:
            return []
        return [f"  {task.name}: {'; '.join(parts) or 'ok'} ({seconds:.1f} s)"]

    def _note(self, line: str) -> None:
        if line.startswith("...ignoring"):
            # The play meant it to be allowed to fail.
            del self.failures[self._mark :]
            self._task.failed.clear()
            self._is_failing = False
            return
        if _FAILURE.match(line):
            self._is_failing = True
        elif _END.match(line):
            self._is_failing = False
        if self._is_failing:
            self._keep(line)
        if found := _RESULT.match(line):
            self._task.seen.add(found["host"])
            if found["how"] == "changed":
                self._task.changed.add(found["host"])
            elif found["how"] in {"fatal", "failed"}:
                self._task.failed.add(found["host"])

    def _keep(self, line: str) -> None:
        if len(self.failures) == self._mark:
            self.failures.append(f"TASK [{self._task.name}]")
        self.failures.append(line)


def _names(hosts: set[str]) -> str:
    return ", ".join(sorted(hosts))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

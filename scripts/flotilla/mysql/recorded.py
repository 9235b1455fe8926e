"""The steps of a command: printed, timed, and in a journal before they begin and after they ended.

Whoever comes after a killed run reads in ``var/<env>/mysql/<time>-<command>.jsonl`` (of Redis in
``redis/``, of load balancers in ``lb/``) what it was about to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flotilla import audit
from flotilla.deploy.journal import Journal
from flotilla.errors import FlotillaError
from flotilla.settings import Settings

# A line for the operator. Given a plan, raises Refused to stop.
Said = Callable[[str], None]
Confirmed = Callable[[str], None]


class Steps:
    """Prints and journals steps; ``result`` goes into the audit, ``seconds`` is title to seconds.

    With ``total`` 0, steps are counted up only.
    """

    def __init__(self, journal: Journal, said: Said, total: int) -> None:
        self._journal = journal
        self._said = said
        self._total = total
        self._count = 0
        self.seconds: dict[str, float] = {}
        self.result: dict[str, Any] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step: on the disk before it begins, printed when it ended."""
        self._count += 1
        start = time.monotonic()
        self._journal.write("step", title=title)
        yield
        seconds = time.monotonic() - start
        self._journal.write("done", title=title, seconds=round(seconds, 4))
        self.seconds[title] = round(seconds, 4)
        number = f"[{self._count}/{self._total}]" if self._total else f"[{self._count}]"
        self._said(f"{number} {title} ... ok {seconds:.2f} s")


@contextmanager
def recorded(settings: Settings, command: str, said: Said, total: int = 0) -> Iterator[Steps]:
    """A run of ``command``: its journal while it lasts, its audit line when it ends."""
    clock = datetime.now(UTC)
    noun, _, verb = command.split()[1].partition(".")
    folder = settings.scratch / (noun if noun in {"redis", "lb"} else "mysql")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{clock:%Y%m%dT%H%M%S}-{verb}.jsonl"
    journal = Journal(path, lambda: datetime.now(UTC))
    journal.write("begin", command=command)
    steps = Steps(journal, said, total)
    try:
        yield steps
    except BaseException as error:
        what = error.what if isinstance(error, FlotillaError) else type(error).__name__
        journal.write("end", result="failed", what=what)
        audit.record(settings, command, f"failed: {what}")
        raise
    journal.write("end", result="done", **steps.result)
    audit.record(settings, command, "done", **steps.result)

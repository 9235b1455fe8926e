"""The steps of a command: printed, timed, and in a journal before they begin and after they ended.

Whoever comes after a killed run reads in ``var/<env>/mysql/<time>-<command>.jsonl`` (of Redis in
``redis/``, of load balancers in ``lb/``, of secrets in ``secrets/``, of logins in ``access/``) what
it was about to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flotilla import audit
from flotilla.deploy.journal import Journal
from flotilla.errors import FlotillaError, Unreachable
from flotilla.settings import Settings

# The step in which a plan is made anew, under the lock: it changes nothing.
LOOK_AGAIN = "look again"
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
        self._begun = ""
        self.seconds: dict[str, float] = {}
        self.result: dict[str, Any] = {}

    def stands(self) -> str:
        """What is true of the fleet when somebody did not answer in the middle."""
        if self._begun in {"", LOOK_AGAIN}:
            return "Nothing was changed"
        return f"Cut off at {self._begun!r}; what was done before stands: {self._journal.path}"

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step: on the disk before it begins, printed when it ended."""
        self._count += 1
        self._begun = title
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
    folder = settings.scratch / (noun if noun in {"redis", "lb", "secrets", "access"} else "mysql")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{clock:%Y%m%dT%H%M%S}-{verb}.jsonl"
    journal = Journal(path, lambda: datetime.now(UTC))
    journal.write("begin", command=command)
    steps = Steps(journal, said, total)
    try:
        yield steps
    except BaseException as error:
        if isinstance(error, Unreachable) and not error.untouched:
            error.untouched = steps.stands()
        what = error.what if isinstance(error, FlotillaError) else type(error).__name__
        journal.write("end", result="failed", what=what)
        audit.record(settings, command, f"failed: {what}")
        raise
    journal.write("end", result="done", **steps.result)
    audit.record(settings, command, "done", **steps.result)

"""fab fleet.status: one look, or one after another until the operator has seen enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live

from flotilla.errors import BadOption
from flotilla.rules.status import findings
from flotilla.settings import Settings
from flotilla.status import board
from flotilla.status.gather import Looking

WATCH_SECONDS = 2.0


def status(settings: Settings) -> board.Document:
    """The fleet now, as ``board.document`` describes it; changes nothing.

    What does not answer is named in it. Raises Unreachable when hosts cannot be listed at all.
    """
    with Looking(settings) as looking:
        return _look(looking)


def show(seen: board.Document) -> None:
    """The board on stdout: colours on a terminal, plain text otherwise."""
    console = Console()
    if console.is_terminal:
        console.print(board.tables(seen))
    else:
        console.file.write(board.text(seen) + "\n")


def watch(settings: Settings, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """The board, live until Ctrl-C, which leaves the last one on the screen.

    Raises BadOption where there is no terminal to show it on.
    """
    console = Console()
    if not console.is_terminal:
        raise BadOption(
            "--watch redraws a terminal, and stdout is none",
            untouched="Nothing was changed",
            next="fab fleet.status --json, as often as needed",
        )
    seen: board.Document = {}
    live = Live(console=console, screen=True, auto_refresh=False)
    with Looking(settings) as looking, suppress(KeyboardInterrupt), live:
        while True:
            seen = _look(looking)
            live.update(board.tables(seen, worst_first=True), refresh=True)
            sleep(WATCH_SECONDS)
    if seen:
        console.print(board.tables(seen))


def _look(looking: Looking) -> board.Document:
    begun = time.monotonic()
    world = looking.look()
    seconds = time.monotonic() - begun
    return board.document(world, findings(world), at=datetime.now(UTC), seconds=seconds)

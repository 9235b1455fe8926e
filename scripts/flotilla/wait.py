"""Wait for a condition with a deadline; the clock and the sleep are arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlineError(Exception):
    """The condition did not hold in time; ``seconds`` is how long was waited."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not within {seconds:g} s")
        self.seconds = seconds


def until(
    probe: Callable[[], T | None],
    *,
    seconds: float,
    every: float = 0.2,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call ``probe`` until it gives something true, and return that.

    It is called at least once, and a last time at the deadline. Raises DeadlineError after
    ``seconds``; what ``probe`` raises goes through.
    """
    start = clock()
    while True:
        found = probe()
        if found:
            return found
        left = seconds - (clock() - start)
        if left <= 0:
            raise DeadlineError(seconds)
        sleep(min(every, left))

"""Wait for a host that is starting."""

from __future__ import annotations

import time
from collections.abc import Callable

from flotilla.errors import Unreachable
from flotilla.hosts.ssh import Runner
from flotilla.wait import DeadlineError, until


def await_ssh(
    runner: Runner,
    name: str,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until a host answers SSH. Raises Unreachable after ``seconds``."""

    def answers() -> bool:
        try:
            return runner.run(name, "true", seconds=10).ok
        except Unreachable:
            return False

    try:
        until(answers, seconds=seconds, every=2.0, clock=clock, sleep=sleep)
    except DeadlineError:
        raise Unreachable(
            f"{name} does not answer SSH {seconds:g} s after it was started",
            next=f"fab fleet.logs {name}",
        ) from None

"""How long things may take, and what a deploy does when they take longer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flotilla.rules.rotation import FULL

Overrun = Literal["wait", "cut", "abort"]
OnFailure = Literal["rollback", "stop"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How each step is done, in seconds. ``boot`` is the application's own start.

    ``soak`` is how long a host that came back is watched, the canary once for each of ``shares``
    (percent of its weight). ``drain_overrun``: what becomes of requests that are still in flight
    after ``drain``: wait for them, cut them off, or abort and give the host back. ``reload`` is how
    long a load balancer's old process may serve on; HAProxy's hard-stop-after ends it at 60.
    """

    drain: float = 30.0
    boot: float = 30.0
    gate: float = 15.0
    answer: float = 5.0
    poll: float = 0.1
    idle_reads: int = 3
    fit_reads: int = 3
    soak: float = 0.0
    shares: tuple[int, ...] = (FULL,)
    drain_overrun: Overrun = "abort"
    reload: float = 65.0

    @property
    def trial(self) -> tuple[int, ...]:
        """The canary's shares, the last one all of its weight; nothing to see without a soak."""
        return (*(s for s in self.shares if s < FULL), FULL) if self.soak else (FULL,)


@dataclass(frozen=True, slots=True)
class Conduct:
    """When to give up, and what then.

    ``budget`` seconds for the whole deploy, ``progress`` seconds without any finished step.
    ``on_failure`` "stop" leaves every host as it is, with the failed ones out of rotation.
    """

    budget: float = math.inf
    progress: float = math.inf
    on_failure: OnFailure = "rollback"

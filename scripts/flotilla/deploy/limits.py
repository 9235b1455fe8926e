"""How long things may take, and what a deploy does when they take longer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flotilla.rules.rotation import FULL
from flotilla.settings import Settings

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


def beside(hosts: int) -> int:
    """How many of so many hosts may have work done beside their requests at the same time.

    A quarter: unpacking a release on all six hosts of a fleet at once made one request in a hundred
    wait 60 ms instead of 10.
    """
    return max(2, math.ceil(hosts / 4))


def limits(settings: Settings) -> Limits:
    """Limits of this fleet: its deploy section, and the application's own start."""
    deploy = settings.deploy
    return Limits(
        drain=float(deploy.drain_seconds),
        boot=float(settings.application.boot_seconds),
        soak=float(deploy.soak_seconds),
        shares=tuple(deploy.canary_weight_percent),
        drain_overrun=deploy.drain_overrun,
    )


def conduct(settings: Settings) -> Conduct:
    """When a deploy of this fleet gives up, and what then."""
    deploy = settings.deploy
    return Conduct(
        budget=float(deploy.budget_seconds),
        progress=float(deploy.progress_seconds),
        on_failure=deploy.on_failure,
    )

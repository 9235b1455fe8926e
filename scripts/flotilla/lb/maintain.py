"""Take one load balancer at a time away and bring it back, whoever has the address last.

keepalived is armed all the time: if the one that serves dies meanwhile, the other one takes over as
soon as it is back, and this pass stops with its name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from flotilla.errors import HostFailed, Refused
from flotilla.rules import lb_maintain as rules
from flotilla.rules.replace_pair import Balancer
from flotilla.wait import DeadlineError, until

# HAProxy's checks of its servers, and keepalived's of HAProxy, after both were restarted.
FIT_SECONDS = 90.0

# Works on the host of that name and reads back what it did.
Work = Callable[[str], None]
Step = Callable[[str], AbstractContextManager[None]]


class Balancers(Protocol):
    """What a pass acts on; ``replace.pair.Pair`` is one."""

    def look(self) -> list[Balancer]:
        """Every load balancer that runs."""

    def move(self, source: Balancer) -> None:
        """Move the address away from ``source``, and wait until that one could serve again."""


class Maintenance:
    """One pass over the load balancers. ``guard`` is called before each change."""

    def __init__(
        self,
        pair: Balancers,
        step: Step,
        work: Work,
        *,
        guard: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pair = pair
        self._step = step
        self._work = work
        self._guard = guard
        self._sleep = sleep
        self._clock = clock
        self.done: list[str] = []
        # Who the address was moved away from.
        self.moved: list[str] = []

    def run(self, names: Sequence[str]) -> str:
        """Work on all of ``names``; who has the address in the end.

        Raises Refused where nothing was begun, HostFailed at the first host that does not come
        back: the others are left alone.
        """
        while left := [name for name in names if name not in self.done]:
            then = self._next(left)
            name = then.host.name
            if then.gives_away:
                self._guard()
                with self._step(f"move the address away from {name}"):
                    self._pair.move(then.host)
                self.moved.append(name)
                if self._next(left).gives_away:
                    raise HostFailed(
                        f"the address came back to {name}",
                        "it is not worked on while clients are on it",
                        next="fab lb.status",
                    )
            self._guard()
            with self._step(f"work on {name}"):
                self._work(name)
            with self._step(f"{name} could serve again"):
                self._back(name)
            self.done.append(name)
        return next((host.name for host in self._pair.look() if host.owner), "")

    def _next(self, left: Sequence[str]) -> rules.Turn:
        hosts = self._pair.look()
        found = rules.disorder(hosts)
        gone = sorted(set(left) - {host.name for host in hosts})
        found += [f"{name} does not run" for name in gone]
        if not found:
            return rules.turn(hosts, left)
        what, why = "; ".join(found), "while one is away another one must be able to serve alone"
        if not (self.done or self.moved):
            raise Refused(what, why, "Nothing was changed", "fab lb.status")
        done = f"{', '.join(self.done)} was done; " if self.done else ""
        raise HostFailed(
            what, why, f"{done}{', '.join(left)} was left as it is", "fab lb.status, then again"
        )

    def _back(self, name: str) -> None:
        def fit() -> bool:
            return any(host.name == name and host.fit for host in self._pair.look())

        try:
            until(fit, seconds=FIT_SECONDS, every=1.0, clock=self._clock, sleep=self._sleep)
        except DeadlineError as late:
            raise HostFailed(
                f"{name} could not serve {late.seconds:g} s after the work on it",
                "its HAProxy has no server up, or keepalived takes no part",
                "The others were left as they are; the one with the address serves",
                f"fab fleet.logs {name} --unit haproxy",
            ) from None

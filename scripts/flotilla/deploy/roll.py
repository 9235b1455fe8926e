"""One host: out of rotation on every load balancer, another release, fit, back in rotation.

The order is what keeps requests from failing, each step read back before the next:

1. drain, so that no new request comes; wait until none is in flight, three reads in a row
2. maintenance, which a client's cookie does not get around; wait again
3. the other release; the host itself must be ready and name the version
4. drain and `health down` in one line: HAProxy forgets the check result of before and must see
   fresh passes; a server that leaves maintenance directly is given requests before any check
5. ready, and UP on every load balancer
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flotilla.deploy.world import World
from flotilla.errors import FlotillaError, HostFailed
from flotilla.rules import deploy as rules
from flotilla.rules import rotation
from flotilla.wait import DeadlineError, until


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each step may take, in seconds. ``boot`` is the application's own start."""

    drain: float = 30.0
    boot: float = 30.0
    gate: float = 15.0
    answer: float = 5.0
    poll: float = 0.2
    idle_reads: int = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step of one host. ``error`` is "" when it worked."""

    host: str
    name: str
    seconds: float
    error: str = ""


class Roll:
    """The steps, on one world. ``guard`` is called before every change and may raise to stop it."""

    def __init__(
        self,
        world: World,
        limits: Limits,
        *,
        said: Callable[[Step], None],
        guard: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._world = world
        self._limits = limits
        self._said = said
        self._guard = guard
        self._clock = clock
        self._sleep = sleep

    def why_too_few(self, batch: Collection[str], least: int) -> str | None:
        """Why ``batch`` cannot be taken out; a host that is just coming back is waited for."""
        why: str | None = None

        def enough() -> bool:
            nonlocal why
            why = rules.why_too_few(self._world.balancers.servers(), batch, least)
            return why is None

        try:
            until(
                enough,
                seconds=self._limits.gate,
                every=self._limits.poll,
                clock=self._clock,
                sleep=self._sleep,
            )
        except DeadlineError:
            return why
        return None

    def host(self, name: str, version: str | None) -> None:
        """Bring one host to ``version``; None takes the application away. Raises FlotillaError."""
        self.take_out(name)
        with self._step(name, f"switch to {version or 'nothing'}"):
            self._guard()
            self._change(name, version)
        if version is None:
            self.leave_down(name)
            return
        with self._step(name, "ready on the host"):
            self._call(name, "wait", version, "--seconds", f"{self._limits.boot:g}")
        self.bring_back(name)

    def take_out(self, name: str) -> None:
        """Steps 1 and 2. With sticky clients step 1 would never end, so it is left out."""
        with self._step(name, "drain"):
            self._guard()
            sticky = self._world.balancers.is_sticky()
            if not sticky:
                self._order(name, "state drain")
                self._until(name, rotation.why_not_leaving, self._limits.answer)
                self._empty(name, self._limits.idle_reads)
            self._order(name, "state maint")
            self._until(name, self._is(rotation.MAINTENANCE), self._limits.answer)
            # What was seen idle while draining has had no new request since.
            self._empty(name, self._limits.idle_reads if sticky else 1)

    def bring_back(self, name: str) -> None:
        """Steps 4 and 5."""
        with self._step(name, "checked by every load balancer"):
            self._guard()
            self._order(name, "state drain", "health down")
            self._until(name, rotation.why_not_fit, self._limits.gate)
        with self._step(name, "return"):
            self._guard()
            self._order(name, "state ready")
            self._until(name, rotation.why_not_up, self._limits.answer)

    def leave_down(self, name: str) -> None:
        """A host without a release, as before its first deploy: ready, and down by its checks."""
        with self._step(name, "left without a release"):
            self._order(name, "state drain", "health down")
            self._order(name, "state ready")

    def restore(self, name: str, previous: str | None) -> None:
        """Bring a host whose roll failed back to what it ran, whatever step it failed at."""
        status = self._world.releases.call(name, "status", seconds=self._limits.answer)
        if status["current"] == previous and status["active"]:
            self.bring_back(name)
        else:
            self.host(name, previous)

    def _empty(self, name: str, wanted: int) -> None:
        reads = 0

        def why_not(views: rotation.Views) -> str | None:
            nonlocal reads
            why = rotation.why_not_idle(views)
            reads = 0 if why else reads + 1
            return why or (None if reads >= wanted else f"{name} was seen idle {reads} times")

        self._until(name, why_not, self._limits.drain)

    def _change(self, name: str, version: str | None) -> None:
        if version is None:
            self._call(name, "retire")
        else:
            self._call(name, "switch", version)

    def _call(self, name: str, *words: str) -> None:
        self._world.releases.call(name, *words, seconds=self._limits.boot + self._limits.drain)

    def _order(self, name: str, *states: str) -> None:
        self._world.balancers.order(name, *states)

    def _is(self, state: str) -> Callable[[rotation.Views], str | None]:
        return lambda views: rotation.why_not_out(views, state)

    def _until(
        self, name: str, why_not: Callable[[rotation.Views], str | None], seconds: float
    ) -> None:
        reason = ""

        def holds() -> bool:
            nonlocal reason
            reason = why_not(self._world.balancers.views(name)) or ""
            return not reason

        try:
            until(
                holds,
                seconds=seconds,
                every=self._limits.poll,
                clock=self._clock,
                sleep=self._sleep,
            )
        except DeadlineError as error:
            raise HostFailed(f"{reason} after {error.seconds:g} s") from None

    @contextmanager
    def _step(self, host: str, name: str) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        except FlotillaError as error:
            self._said(Step(host, name, self._clock() - started, error.what))
            raise
        self._said(Step(host, name, self._clock() - started))

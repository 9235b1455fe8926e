"""Take servers out of rotation and give them back, on every load balancer, whatever those do.

A load balancer that is reloaded or started again in the middle may forget what it was told. So
whoever waits for something also looks whether a server that is held out is still out, and takes it
out again; and an order is repeated for as long as a socket is away, for a restart takes a second.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from flotilla.deploy.limits import Limits
from flotilla.deploy.world import Balancers
from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.rules import rotation
from flotilla.rules.rotation import DRAINED, MAINTENANCE
from flotilla.wait import DeadlineError, until

WhyNot = Callable[[rotation.Views], str | None]

# What makes a load balancer hold a server in a state again. Drained, with the result of its checks
# thrown away: one that was started again takes every server for UP before its first check.
_AGAIN = {MAINTENANCE: ("state maint",), DRAINED: ("state drain", "health down")}


# How often a server is looked at while its host is worked on; each look is a question to every load
# balancer, and one that forgot it needs longer than this to be reached by a client.
KEEP_SECONDS = 0.25
# Between two looks that must both be good.
AGAIN_SECONDS = 0.05


class Shift:
    """The load balancers' part of a roll.

    ``overdue`` is asked while waiting; what it answers is why to give up.
    """

    def __init__(
        self,
        balancers: Balancers,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.balancers = balancers
        self.limits = limits
        self.overdue: Callable[[], str] = lambda: ""
        self.notes: list[str] = []
        self.cut: dict[str, int] = {}
        self._clock = clock
        self._sleep = sleep

    def over(self, balancers: Balancers) -> Shift:
        """The same over fewer load balancers."""
        part = copy.copy(self)
        part.balancers = balancers
        return part

    def drain(self, name: str) -> None:
        """No new request, then none in flight, then maintenance.

        With sticky clients draining would never end, so those go straight to maintenance, which
        sends them elsewhere.
        """
        sticky, ends = self.balancers.is_sticky(), self._clock() + self.limits.drain
        if not sticky:
            self.order(name, "state drain")
            self.until(name, rotation.why_not_leaving, self.limits.answer, held=DRAINED)
            self._empty(name, DRAINED, self.limits.idle_reads, ends)
        self.order(name, "state maint")
        self.until(name, _in_maintenance, self.limits.answer, held=MAINTENANCE)
        # What was seen idle while draining has had no new request since.
        self._empty(name, MAINTENANCE, self.limits.idle_reads if sticky else 1, ends)
        self._alone(name)

    def arm(self, name: str, share: int) -> None:
        """Drained with its checks on, and nothing they have seen so far counts."""
        self.order(name, f"weight {share}%", *_AGAIN[DRAINED])

    def gate(self, name: str) -> None:
        """Wait until every load balancer has seen fresh checks pass since ``arm``."""
        self.until(
            name,
            rotation.why_not_fit,
            self.limits.gate,
            reads=self.limits.fit_reads,
            held=DRAINED,
        )

    def give(self, name: str) -> None:
        """Into rotation, and UP on every load balancer."""
        self.order(name, "state ready")
        self.until(name, rotation.why_not_up, self.limits.answer)

    def weigh(self, name: str, share: int) -> None:
        """Give it ``share`` percent of its weight, on every load balancer."""
        why: str | None = None

        def has() -> bool:
            nonlocal why
            self.order(name, f"weight {share}%")
            why = self.why_not_share(name, share)
            return why is None

        try:
            self._until(has, self.limits.answer)
        except DeadlineError:
            raise HostFailed(
                why or name, next="fab fleet.configure, if its weight is not 100"
            ) from None

    def why_not_share(self, name: str, share: int) -> str | None:
        """Whether every load balancer gives it that share."""
        shares = {lb: seen.get(name, 0.0) for lb, seen in self.balancers.shares().items()}
        return rotation.why_not_share(name, shares, share)

    def order(self, name: str, *states: str) -> None:
        """Give it states, again where a load balancer is away or has not all its servers yet."""
        last: FlotillaError = Unreachable(f"{name}: no load balancer was told")

        def told() -> bool:
            nonlocal last
            try:
                self.balancers.order(name, *states)
            except (Unreachable, HostFailed) as error:
                last = error
                return False
            return True

        try:
            self._until(told, self.limits.answer)
        except DeadlineError:
            raise last from None

    def until(
        self, name: str, why_not: WhyNot, seconds: float, *, reads: int = 1, held: str = ""
    ) -> None:
        """Wait until nothing speaks against it in ``reads`` looks in a row.

        ``held``: the state it must be in meanwhile; where it is lost, it is ordered again.
        """
        reason = ""

        def holds() -> bool:
            nonlocal reason
            if why := self.overdue():
                raise HostFailed(why)
            for number in range(reads):
                if number:
                    self._sleep(AGAIN_SECONDS)
                reason = self._why_not(name, why_not, held)
                if reason:
                    return False
            return True

        try:
            self._until(holds, seconds)
        except DeadlineError as error:
            raise HostFailed(f"{reason} after {error.seconds:g} s") from None

    def _why_not(self, name: str, why_not: WhyNot, held: str) -> str:
        try:
            views = self.balancers.views(name)
            return self.keep(name, held, views) or why_not(views) or ""
        except (Unreachable, HostFailed) as error:
            return error.what

    def keep(self, name: str, held: str, views: rotation.Views | None = None) -> str:
        """Order its state again where it was lost, and say where that was."""
        if not held:
            return ""
        lost = rotation.forgotten(views or self.balancers.views(name), held)
        if not lost:
            return ""
        self.balancers.order(name, *_AGAIN[held], only=lost)
        said = f"{' and '.join(lost)} forgot that {name} is out of rotation and was told again"
        self.notes.append(said)
        return said

    def meanwhile(self, name: str, work: Callable[[], object], held: str = MAINTENANCE) -> None:
        """Do ``work`` on the host and keep it out of rotation until that is over."""
        done = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as pool:
            future = pool.submit(work)
            future.add_done_callback(lambda _: done.set())
            while not done.wait(KEEP_SECONDS):
                try:
                    self.keep(name, held)
                except FlotillaError:
                    continue  # a load balancer that does not answer is met at the gate
            future.result()

    def _empty(self, name: str, held: str, reads: int, ends: float) -> None:
        overrun = self.limits.drain_overrun
        seconds = math.inf if overrun == "wait" else max(0.0, ends - self._clock())
        try:
            self.until(name, rotation.why_not_idle, seconds, reads=reads, held=held)
        except HostFailed:
            if overrun != "cut" or self.overdue():
                raise
            if held == MAINTENANCE:
                self._cut(name)

    def _cut(self, name: str) -> None:
        """In maintenance nothing new comes, so what is cut off now is all there is."""
        views = self.balancers.views(name)
        self.cut[name] = self.cut.get(name, 0) + sum(view.sessions for view in views.values())
        self.balancers.cut_sessions(name)
        self.until(name, rotation.why_not_idle, self.limits.answer, held=MAINTENANCE)

    def _alone(self, name: str) -> None:
        """No process of before a reload may be left: it still sends requests to this host."""

        def why_not(_: rotation.Views) -> str | None:
            return self.balancers.why_not_alone()

        self.until(name, why_not, self.limits.reload, held=MAINTENANCE)

    def _until(self, probe: Callable[[], bool], seconds: float) -> None:
        until(probe, seconds=seconds, every=self.limits.poll, clock=self._clock, sleep=self._sleep)


def _in_maintenance(views: rotation.Views) -> str | None:
    return rotation.why_not_out(views, MAINTENANCE)

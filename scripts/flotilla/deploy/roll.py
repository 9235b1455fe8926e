"""One host: out of rotation on every load balancer, another release, fit, back in rotation.

The order is what keeps requests from failing, each step read back before the next:

1. drain, so that no new request comes; wait until none is in flight, three reads in a row
2. maintenance, which a client's cookie does not get around; wait again, also for processes of
   before a reload, which were told neither
3. the other release; the host itself must be ready and name the version
4. drain and `health down` in one line: HAProxy forgets the check result of before and must see
   fresh passes; a server that leaves maintenance directly is given requests before any check.
   Without sticky clients a drained server is given nothing, so its checks begin to run while the
   application still starts
5. ready, and UP on every load balancer
6. with a part of its share at first if it is the canary, watched and compared with the others
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flotilla.deploy.limits import Limits
from flotilla.deploy.shift import Shift
from flotilla.deploy.soak import Soak, Trial
from flotilla.deploy.world import World
from flotilla.errors import FlotillaError, HostFailed
from flotilla.rules import deploy as rules
from flotilla.rules.rotation import DRAINED, FULL, MAINTENANCE
from flotilla.wait import DeadlineError, until

__all__ = ["Limits", "Roll", "Step", "Trial"]

# What the release tool says while a command of a run that was killed still works on the host.
AT_WORK = "another app-release is at work"


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step of one host. ``error`` is "" when it worked."""

    host: str
    name: str
    seconds: float
    error: str = ""


class Roll:
    """The steps, on one world. ``guard`` is called before every change and may raise to stop it.

    ``meant`` is told of a step before it begins, ``said`` when it is over.
    """

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
        self.limits = limits
        self.meant: Callable[[str, str], None] = lambda host, step: None  # noqa: ARG005
        self._world = world
        self._said = said
        self._guard = guard
        self._clock = clock
        self._sleep = sleep
        self.shift = Shift(world.balancers, limits, clock=clock, sleep=sleep)
        self.soak = Soak(self.shift, clock=clock, sleep=sleep)

    def why_too_few(self, batch: Collection[str], least: int) -> str | None:
        """Why ``batch`` cannot be taken out; a host that is just coming back is waited for."""
        why: str | None = None

        def enough() -> bool:
            nonlocal why
            try:
                why = rules.why_too_few(self._world.balancers.servers(), batch, least)
            except FlotillaError as error:
                why = error.what
            return why is None

        try:
            self._until(enough, self.limits.gate)
        except DeadlineError:
            return why
        return None

    def host(self, name: str, version: str | None, trial: Trial | None = None) -> None:
        """Bring one host to ``version``; None takes the application away. Raises FlotillaError.

        With a ``trial`` it must prove itself before it counts as done.
        """
        self.take_out(name)
        with self._step(name, f"switch to {version or 'nothing'}"):
            self._guard()
            self.shift.meanwhile(name, lambda: self._change(name, version))
        if version is None:
            self.leave_down(name)
            return
        share = trial.shares[0] if trial else FULL
        with self._step(name, "ready on the host"):
            sticky = self.shift.balancers.is_sticky()
            if not sticky:
                self._guard()
                self.shift.arm(name, share)
            held = MAINTENANCE if sticky else DRAINED
            self.shift.meanwhile(name, lambda: self._ready(name, version), held)
        self.bring_back(name, share, armed=not sticky)
        if trial:
            self.prove(name, trial)

    def take_out(self, name: str) -> None:
        """Steps 1 and 2. With sticky clients step 1 would never end, so it is left out."""
        with self._step(name, "drain"):
            self._guard()
            self.shift.drain(name)

    def hold_out(self, name: str) -> None:
        """Maintenance at once, for a host that is not to serve; what is in flight may end."""
        with self._step(name, "held out"):
            self._guard()
            self.shift.order(name, "state maint")

    def bring_back(self, name: str, share: int = FULL, *, armed: bool = False) -> None:
        """Steps 4 and 5, with a share of its weight in percent; ``armed``: its checks run."""
        with self._step(name, "checked by every load balancer"):
            if not armed:
                self._guard()
                self.shift.arm(name, share)
            self.shift.gate(name)
        with self._step(name, "return"):
            self._guard()
            self.shift.give(name)
            self.shift.weigh(name, share)

    def prove(self, name: str, trial: Trial) -> None:
        """Step 6. Raises HostFailed as soon as it serves worse than the others."""
        for share in trial.shares:
            if share != trial.shares[0]:
                with self._step(name, f"{share}% of its share"):
                    self._guard()
                    self.shift.weigh(name, share)
            if self.limits.soak:
                label = "soak" if share == FULL else f"soak at {share}%"
                with self._step(name, label):
                    self.soak.watch(name, share, trial)

    def leave_down(self, name: str) -> None:
        """A host without a release, as before its first deploy: ready, and down by its checks."""
        with self._step(name, "left without a release"):
            self.shift.order(name, f"weight {FULL}%", "state drain", "health down")
            self.shift.order(name, "state ready")

    def restore(self, name: str, version: str | None, trial: Trial | None = None) -> None:
        """Bring a host to ``version`` whatever step it is at; what runs already is not restarted.

        A load balancer that does not answer does not keep it out of rotation on the others; then
        HostFailed is raised once it serves there.
        """
        balancers, silent = self.shift.balancers.answering()
        if not silent or not any(balancers):
            self._restore(name, version, trial)
            return
        part = copy.copy(self)
        part.shift = self.shift.over(balancers)
        part._restore(name, version, trial)  # noqa: SLF001  ourselves, over fewer load balancers
        raise HostFailed("; ".join(silent.values()), next="fab fleet.status")

    def _restore(self, name: str, version: str | None, trial: Trial | None) -> None:
        status = self.status(name)
        runs = status["current"] == version and not status.get("stale")
        if runs and version is None:
            self.leave_down(name)
        elif runs and version and status["active"]:
            with self._step(name, "ready on the host"):
                self._ready(name, version)
            self.bring_back(name, trial.shares[0] if trial else FULL)
            if trial:
                self.prove(name, trial)
        else:
            self.host(name, version, trial)

    def status(self, name: str) -> dict[str, Any]:
        """What the release tool on a host reports."""
        return self._world.releases.call(name, "status", seconds=self.limits.answer)

    def _ready(self, name: str, version: str) -> None:
        self._call(name, "wait", version, "--seconds", f"{self.limits.boot:g}")

    def _change(self, name: str, version: str | None) -> None:
        if version is None:
            self._call(name, "retire")
        else:
            self._call(name, "switch", version)

    def _call(self, name: str, *words: str) -> None:
        self.call(name, *words, limit=self.limits.boot + self.limits.drain)

    def call(self, name: str, *words: str, limit: float) -> None:
        """Run the release tool; one that a killed run left at work there is waited for."""

        def done() -> bool:
            try:
                self._world.releases.call(name, *words, seconds=limit)
            except HostFailed as error:
                if AT_WORK not in error.what:
                    raise
                return False
            return True

        try:
            self._until(done, limit)
        except DeadlineError as error:
            raise HostFailed(f"{name}: {AT_WORK} there since {error.seconds:g} s") from None

    def _until(self, probe: Callable[[], bool], seconds: float) -> None:
        until(probe, seconds=seconds, every=self.limits.poll, clock=self._clock, sleep=self._sleep)

    @contextmanager
    def _step(self, host: str, name: str) -> Iterator[None]:
        self.meant(host, name)
        started = self._clock()
        try:
            yield
        except FlotillaError as error:
            self._said(Step(host, name, self._clock() - started, error.what))
            raise
        self._said(Step(host, name, self._clock() - started))

"""Carry out an exchange of the load balancers: look, do the next thing, look again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flotilla.deploy.journal import Journal
from flotilla.errors import FlotillaError, HostFailed
from flotilla.replace.outcome import Result
from flotilla.replace.step import Said, journaled
from flotilla.rules.replace import Plan
from flotilla.rules.replace_pair import (
    PAIR,
    Balancer,
    Configure,
    Done,
    End,
    Launch,
    Move,
    Rename,
    Step,
    step,
)

# More than two exchanges and going back take.
STEPS = 40


class Balancers(Protocol):
    """What an exchange acts on; ``replace.pair.Pair`` is one. All methods raise FlotillaError."""

    def look(self) -> list[Balancer]:
        """Every load balancer that runs."""

    def launch(self, name: str, zone: str, image_id: str) -> None:
        """Start one and wait until it can be configured."""

    def configure(self, unfit: Sequence[Balancer]) -> None:
        """Make them fit, and known to the others."""

    def move(self, source: Balancer) -> None:
        """Move the address away from ``source``."""

    def end(self, host: Balancer, idle_seconds: float) -> None:
        """Terminate one that has not got the address."""

    def rename(self, host: Balancer, name: str) -> None:
        """Give it its name."""

    def settle(self) -> None:
        """Make everybody forget those that are gone."""

    def launch_from(self, image_id: str) -> None:
        """The image that whoever launches a load balancer uses from now on."""


class PairExchange:
    """One run. ``stopping`` is asked before each step; a reason brings the old image back."""

    def __init__(
        self,
        pair: Balancers,
        plan: Plan,
        zones: Sequence[str],
        journal: Journal,
        *,
        idle_seconds: float,
        said: Callable[[Said], None],
        guard: Callable[[], None] = lambda: None,
        stopping: Callable[[], str] = lambda: "",
        going_back: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pair = pair
        self._plan = plan
        self._zones = zones
        self.journal = journal
        self._idle_seconds = idle_seconds
        self._said = said
        self._guard = guard
        self._stopping = stopping
        self._clock = clock
        self.reason = going_back
        self.blames_image = False
        self.launched: list[str] = []
        self.ended: list[str] = []
        self.fewest: int | None = None

    def run(self) -> tuple[Result, str]:
        """The result, and for "stopped" what is left."""
        try:
            self._until_done(self._plan.previous_image if self.reason else self._plan.image_id)
        except FlotillaError as error:
            if self.reason:
                return "stopped", error.what
            return self._back(error.what)
        return ("rolled back" if self.reason else "done"), ""

    def _back(self, why: str) -> tuple[Result, str]:
        self.reason = why
        try:
            self._guard()
            self.journal.write("going back", why=why)
            self._until_done(self._plan.previous_image)
        except FlotillaError as error:
            return "stopped", error.what
        return "rolled back", ""

    def _until_done(self, image_id: str) -> None:
        self._pair.launch_from(image_id)
        for _ in range(STEPS):
            self._guard()
            why = self._stopping()
            if why and not self.reason:
                raise FlotillaError(why)
            hosts = self._pair.look()
            self._count(hosts)
            then = step(hosts, image_id, self._zones)
            if isinstance(then, Done):
                self._step("make all forget those that are gone", self._pair.settle)
                return
            self._act(then, image_id)
        raise FlotillaError(f"not done after {STEPS} steps: load balancers come and go")

    def _count(self, hosts: Sequence[Balancer]) -> None:
        fit = min(PAIR, sum(host.fit for host in hosts))
        self.fewest = fit if self.fewest is None else min(self.fewest, fit)

    def _act(self, then: Step, image_id: str) -> None:
        if isinstance(then, Launch):
            name, zone = then.name, then.zone
            self._step(f"launch {name} in {zone}", lambda: self._pair.launch(name, zone, image_id))
            self.launched.append(name)
        elif isinstance(then, Configure):
            self._configure(then.unfit)
        elif isinstance(then, Move):
            source = then.source
            self._step(f"move the address from {source.name}", lambda: self._pair.move(source))
        elif isinstance(then, End):
            host = then.host
            self._step(f"terminate {host.name}", lambda: self._pair.end(host, self._idle_seconds))
            self.ended.append(host.instance_id)
        elif isinstance(then, Rename):
            host, name = then.host, then.name
            self._step(f"name {host.name} {name}", lambda: self._pair.rename(host, name))

    def _configure(self, unfit: Sequence[Balancer]) -> None:
        names = ", ".join(host.name for host in unfit)
        try:
            self._step(f"configure {names}", lambda: self._pair.configure(unfit))
        except HostFailed:
            self.blames_image = not self.reason
            raise

    def _step(self, name: str, work: Callable[[], None]) -> None:
        self._guard()
        with journaled(self.journal, name, self._said, self._clock):
            work()

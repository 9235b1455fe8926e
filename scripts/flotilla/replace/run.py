"""Carry out an exchange of hosts: look, do the next thing, look again; go back when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from flotilla.deploy.journal import Journal
from flotilla.errors import FlotillaError, HostFailed
from flotilla.replace.outcome import Outcome, Result
from flotilla.replace.step import Said, journaled
from flotilla.rules.replace import Await, Done, Goal, Host, Launch, Plan, Retire, Watch
from flotilla.rules.replace import Step as Next
from flotilla.rules.replace import step as next_step


@dataclass(frozen=True, slots=True)
class Limits:
    """In seconds: until a new host must serve, and until Auto Scaling must have launched one."""

    come: float
    launch: float = 300.0
    poll: float = 1.0
    # A tier that keeps changing under us would never be done.
    steps: int = 500


class Tier(Protocol):
    """What an exchange acts on; ``replace.tier.Scaled`` is one. All methods raise FlotillaError."""

    def look(self) -> tuple[list[Host], int]:
        """The hosts that run, and how many Auto Scaling has yet to launch."""

    def launch(self, count: int) -> None:
        """Want so many hosts more than run."""

    def watch(self, hosts: Sequence[Host], peers: Sequence[Host]) -> None:
        """See whether hosts run the release, and serve as well as their peers."""

    def drain(self, host: Host) -> None:
        """Out of rotation on every load balancer, with no request in flight."""

    def end(self, hosts: Collection[Host]) -> None:
        """Terminate hosts, want as many fewer, and see the load balancers forget them."""

    def launch_from(self, version: str) -> None:
        """The launch template version for hosts from now on."""

    def why_not_launched(self) -> str:
        """What Auto Scaling says went wrong last; "" for nothing."""

    def why_not_serving(self, host: Host) -> str:
        """What the host and its load balancers say."""


class Exchange:
    """One run. ``stopping`` is asked before each step; a reason brings the old image back.

    ``proven`` and ``going_back`` come from the journal of a run that was cut off.
    """

    def __init__(
        self,
        tier: Tier,
        plan: Plan,
        version: str,
        journal: Journal,
        limits: Limits,
        *,
        said: Callable[[Said], None],
        guard: Callable[[], None] = lambda: None,
        stopping: Callable[[], str] = lambda: "",
        proven: Collection[str] = (),
        going_back: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._tier = tier
        self._plan = plan
        self._version = version
        self._journal = journal
        self._limits = limits
        self._said = said
        self._guard = guard
        self._stopping = stopping
        self._clock = clock
        self._sleep = sleep
        self._goal = Goal(plan.image_id, plan.desired, plan.most, frozenset(proven))
        self.reason = going_back
        self.blames_image = False
        self.launched: list[str] = []
        self.ended: list[str] = []
        self._first_seen: dict[str, float] = {}
        self._known: frozenset[str] = frozenset()

    def run(self) -> tuple[Result, str]:
        """The result, and for "stopped" what is left."""
        try:
            self._known = frozenset(host.instance_id for host in self._tier.look()[0])
            if self.reason:
                self._turn()
            else:
                self._tier.launch_from(self._version)
            self._until_done()
        except FlotillaError as error:
            if self.reason:
                return "stopped", error.what
            return self._back(error.what)
        return ("rolled back" if self.reason else "done"), ""

    def _back(self, why: str) -> tuple[Result, str]:
        try:
            self._guard()
            self.reason = why
            self._journal.write("going back", why=why)
            self._turn()
            self._until_done()
        except FlotillaError as error:
            return "stopped", error.what
        return "rolled back", ""

    def _turn(self) -> None:
        """Want the image of before; every host that has it has long proven itself."""
        if not self._plan.previous_image:
            raise FlotillaError("no host of the image of before is left, so none says what it was")
        self._tier.launch_from(self._plan.previous_version)
        hosts, _ = self._tier.look()
        self._goal = Goal(
            self._plan.previous_image,
            self._plan.desired,
            self._plan.most,
            frozenset(h.instance_id for h in hosts if h.image_id == self._plan.previous_image),
        )

    def _until_done(self) -> None:
        for _ in range(self._limits.steps):
            self._guard()
            why = self._stopping()
            if why and not self.reason:
                raise FlotillaError(why)
            hosts, launching = self._tier.look()
            fresh = [h.instance_id for h in hosts if h.instance_id not in self._known]
            self.launched += [one for one in fresh if one not in self.launched]
            then = next_step(hosts, self._goal, launching=launching)
            if isinstance(then, Done):
                return
            self._act(then, hosts)
        raise FlotillaError(f"not done after {self._limits.steps} steps: hosts come and go")

    def _act(self, then: Next, hosts: Sequence[Host]) -> None:
        if isinstance(then, Launch):
            self._step(f"launch {then.count}", lambda: self._tier.launch(then.count))
        elif isinstance(then, Await):
            self._await(then.hosts)
        elif isinstance(then, Watch):
            self._watch(then.hosts, hosts)
        elif isinstance(then, Retire):
            self._retire(then.hosts)

    def _await(self, hosts: Sequence[Host]) -> None:
        """Return as soon as anything is different; raise when it takes too long."""
        began = self._clock()
        if not hosts:
            self._launching(began)
            return
        for host in hosts:
            self._first_seen.setdefault(host.instance_id, began)
        late = [h for h in hosts if began - self._first_seen[h.instance_id] > self._limits.come]
        if late:
            self.blames_image = not self.reason
            reasons = "; ".join(f"{h.name} {self._tier.why_not_serving(h)}" for h in late)
            raise HostFailed(f"not serving after {self._limits.come:g} s: {reasons}")
        self._sleep(self._limits.poll)
        there = {host.instance_id: host for host in self._tier.look()[0]}
        for host in hosts:
            now = there.get(host.instance_id)
            if now and now.state == "serving":
                seconds = self._clock() - self._first_seen[host.instance_id]
                self._journal.write("serves", instance=host.instance_id, host=now.name)
                self._said(Said(f"{now.name} serves ({host.instance_id})", seconds))

    def _launching(self, began: float) -> None:
        self._first_seen.setdefault("", began)
        if self._tier.look()[1] == 0:
            del self._first_seen[""]
            return
        if began - self._first_seen[""] > self._limits.launch:
            del self._first_seen[""]
            why = self._tier.why_not_launched() or "it does not say why"
            raise HostFailed(f"Auto Scaling launched no host in {self._limits.launch:g} s: {why}")
        self._sleep(self._limits.poll)

    def _watch(self, new: Sequence[Host], hosts: Sequence[Host]) -> None:
        ids = {host.instance_id for host in new}
        peers = [h for h in hosts if h.instance_id not in ids and h.state == "serving"]
        names = ", ".join(host.name for host in new)
        try:
            self._step(f"watch {names}", lambda: self._tier.watch(new, peers))
        except HostFailed:
            self.blames_image = not self.reason
            raise
        self._journal.write("proven", instances=sorted(ids))
        self._goal = replace(self._goal, proven=self._goal.proven | ids)

    def _retire(self, hosts: Sequence[Host]) -> None:
        with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
            list(pool.map(self._drain, hosts))
        names = ", ".join(host.name for host in hosts)
        self._step(f"terminate {names}", lambda: self._tier.end(hosts))
        self.ended += [host.instance_id for host in hosts]

    def _drain(self, host: Host) -> None:
        self._step(f"drain {host.name}", lambda: self._tier.drain(host))

    def _step(self, name: str, work: Callable[[], None]) -> None:
        self._guard()
        with journaled(self._journal, name, self._said, self._clock):
            work()


def outcome_of(
    exchange: Exchange, journal: Journal, plan: Plan, ended: tuple[Result, str], seconds: float
) -> Outcome:
    """What the run itself knows of its end; what clients saw is added by who watched them."""
    result, left = ended
    return Outcome(
        id=journal.id,
        role=plan.role,
        image=plan.image_name,
        result=result,
        seconds=round(seconds, 2),
        desired=plan.desired,
        launched=list(exchange.launched),
        ended=list(exchange.ended),
        reason=exchange.reason,
        left=left,
    )

"""Watch a host that came back, and compare it with the others, for as long as a soak lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

from flotilla.deploy.shift import Shift
from flotilla.errors import HostFailed, Unreachable
from flotilla.rules import rotation, soak
from flotilla.rules.rotation import FULL

# Often enough that a release that fails everything costs few requests; each look is one question
# to each load balancer.
LOOK_SECONDS = 0.25
# Times are compared in each of these but the first one: caches are cold at first.
PARTS = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """How a host proves itself: with which ``shares`` of its weight, one soak for each, against
    whom. ``judged`` are hosts on the new release that serve already and are watched along."""

    shares: tuple[int, ...] = (FULL,)
    judged: Collection[str] = ()
    peers: Collection[str] = ()


class Soak:
    """Soaks of one roll. ``seen`` is what was counted, by host."""

    def __init__(
        self,
        shift: Shift,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._shift = shift
        self._clock = clock
        self._sleep = sleep
        self.seen: dict[str, dict[str, float | None]] = {}

    def watch(self, name: str, share: int, trial: Trial) -> None:
        """Watch for ``limits.soak`` seconds. Raises HostFailed as soon as something is wrong."""
        seconds, started = self._shift.limits.soak, self._clock()
        # At the beginning, and after each part of the soak.
        marks: list[soak.Samples] = [self._shift.balancers.samples()]
        left = seconds
        while left > 0:
            self._sleep(min(LOOK_SECONDS, left))
            left = seconds - (self._clock() - started)
            try:
                now = self._shift.balancers.samples()
                self._kept(name, share)
            except Unreachable:
                if left <= 0:
                    raise
                continue
            for host in {name, *trial.judged}:
                self._judge(host, marks[0], now, trial)
            if why := self._shift.overdue():
                raise HostFailed(why)
            if seconds - left >= seconds * len(marks) / PARTS:
                marks.append(now)
        self._compare_times(name, marks, trial)
        self._settled(name)

    def _judge(self, host: str, before: soak.Samples, now: soak.Samples, trial: Trial) -> None:
        mine, others = _sides(host, before, now, trial)
        self.seen[host] = mine.as_dict()
        if why := soak.why_unfit(host, mine, others):
            raise HostFailed(why)

    def _compare_times(self, name: str, marks: list[soak.Samples], trial: Trial) -> None:
        """Without the first part. Only for the host itself: one that has just come back can have
        answered no long request yet, so beside it another one would look slow."""
        parts = [_sides(name, *ends, trial) for ends in pairwise(marks[1:])]
        if why := soak.why_slow(name, [mine for mine, _ in parts], [their for _, their in parts]):
            raise HostFailed(why)

    def _kept(self, name: str, share: int) -> None:
        """A load balancer that was started again gives a canary its full share."""
        if share != FULL and self._shift.why_not_share(name, share):
            self._shift.weigh(name, share)

    def _settled(self, name: str) -> None:
        """A soak ends with the host UP and no check failed: "UP 1/2" is on its way down."""
        self._shift.until(name, rotation.why_not_up, self._shift.limits.answer)


def _sides(
    host: str, before: soak.Samples, now: soak.Samples, trial: Trial
) -> tuple[soak.Seen, soak.Seen]:
    """What was counted for the host, and for those it is compared with."""
    peers = [peer for peer in trial.peers if peer != host]
    return soak.seen(before, now, [host]), soak.seen(before, now, peers)

"""Is a server out of rotation, is it fit to return? Answers from what the load balancers report.

A question is put to every load balancer, the passive one too; one that differs is the reason for
"no". Each predicate returns that reason, or None when the answer is yes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAINTENANCE = "MAINT"
DRAINED = "DRAIN"
UP = "UP"
# Of its configured weight; a share is a percentage of that.
FULL = 100
PASSED = frozenset({"L4OK", "L6OK", "L7OK"})


@dataclass(frozen=True, slots=True)
class Server:
    """One server as one load balancer sees it, from its line of ``show stat``.

    ``status`` is HAProxy's word ("UP", "UP 1/2", "DOWN 1/2", "DRAIN", "MAINT"); ``check`` the last
    result without the mark of a check that is running; ``weight`` what balancing uses now.
    """

    name: str
    status: str
    check: str
    sessions: int
    queued: int
    weight: int = 1
    address: str = ""

    @property
    def is_out(self) -> bool:
        """Whether somebody took it out of rotation."""
        return self.status.startswith((MAINTENANCE, DRAINED))

    @property
    def is_serving(self) -> bool:
        """Whether new requests are given to it, even if its last check failed ("UP 1/2")."""
        return self.status.startswith(UP) or self.status == "no check"


Views = Mapping[str, Server]


def why_not_out(views: Views, state: str) -> str | None:
    """``state`` (DRAINED or MAINTENANCE) must be what every load balancer reports.

    A server in maintenance through another one ("MAINT (via b/s)") counts.
    """
    return _first(views, lambda s: None if s.status.startswith(state) else f"is {s.status}")


def why_not_leaving(views: Views) -> str | None:
    """No load balancer gives it new requests. One that was down stays "DOWN" when drained."""
    return _first(views, lambda s: f"is still {s.status}" if s.is_serving else None)


def forgotten(views: Views, state: str) -> list[str]:
    """The load balancers that no longer hold a server in ``state`` (DRAINED or MAINTENANCE).

    One that was started again knows nothing of what it was told. In maintenance nothing but
    maintenance is right: a server shown DOWN would be given requests as soon as it is up. A drained
    one that was down is shown DOWN, and its checks go on, so only one that serves is forgotten.
    """
    if state == MAINTENANCE:
        return sorted(lb for lb, s in views.items() if not s.status.startswith(MAINTENANCE))
    return sorted(lb for lb, server in views.items() if server.is_serving)


def why_not_share(name: str, shares: Mapping[str, float], percent: int) -> str | None:
    """Every load balancer must give the server ``percent`` of its weight; they round down."""
    for balancer, share in sorted(shares.items()):
        if not percent - 1 < share <= percent:
            return f"{name} has {share:g}% of its weight on {balancer}, not {percent}%"
    return None


def why_not_idle(views: Views) -> str | None:
    """No request may be in flight or queued for it."""

    def busy(server: Server) -> str | None:
        if server.sessions or server.queued:
            return f"has {server.sessions} requests in flight and {server.queued} queued"
        return None

    return _first(views, busy)


def why_not_fit(views: Views) -> str | None:
    """Out of rotation by drain, with fresh checks passed.

    Sound only after ``state drain`` and ``health down`` were given together: that throws the old
    result away, so DRAIN with a passed check again means `rise` new passes (a server that came out
    of maintenance otherwise shows the result of before: 277 of 29,053 requests failed).
    """

    def unfit(server: Server) -> str | None:
        if server.status == DRAINED and server.check in PASSED:
            return None
        return f"is {server.status} (last check {server.check or 'none'})"

    return _first(views, unfit)


def why_not_up(views: Views) -> str | None:
    """In rotation with no failed check: "UP 1/2" is on its way down."""
    return _first(views, lambda s: None if s.status == UP else f"is {s.status} ({s.check})")


def _first(views: Views, reason: Callable[[Server], str | None]) -> str | None:
    for balancer in sorted(views):
        if said := reason(views[balancer]):
            return f"{views[balancer].name} {said} on {balancer}"
    return None if views else "no load balancer was asked"


@dataclass(frozen=True, slots=True)
class Counters:
    """What a backend has counted since its process started, all servers together."""

    requests: int = 0
    errors: int = 0  # answers 5xx, whoever made them
    aborted: int = 0  # answers that a server broke off
    retried: int = 0
    redispatched: int = 0

    def since(self, before: Counters) -> Counters:
        """The increase. A process that was replaced starts at zero, so all it counted is new."""
        if self.requests < before.requests:
            return self
        return Counters(*(getattr(self, n) - getattr(before, n) for n in self.__slots__))

    def plus(self, other: Counters) -> Counters:
        """The sum."""
        return Counters(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    @property
    def failed(self) -> int:
        """Requests whose client did not get what it asked for."""
        return self.errors + self.aborted

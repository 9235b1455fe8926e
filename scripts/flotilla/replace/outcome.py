"""How an exchange of hosts ended, and what clients saw of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flotilla.errors import INTERRUPTED, FlotillaError, HostFailed

Result = Literal["done", "nothing to do", "rolled back", "stopped"]


class Interrupted(FlotillaError):  # noqa: N818  it says what happened, as its siblings do
    """The operator stopped it, and hosts of the image of before serve: exit 99."""

    exit_code = INTERRUPTED


@dataclass(slots=True)
class Outcome:
    """``failed`` are requests that load balancers or our own client saw fail; ``least_serving`` is
    the fewest hosts that were in rotation on every load balancer at any look; ``outage_seconds``
    the longest time in which our client was not served.
    """

    id: str
    role: str
    image: str
    result: Result
    seconds: float
    desired: int = 0
    least_serving: int | None = None
    served: int = 0
    failed: int = 0
    retried: int = 0
    redispatched: int = 0
    outage_seconds: float | None = None
    launched: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    reason: str = ""
    left: str = ""
    probe: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The result in one line, clients first."""
        fewest = "" if self.least_serving is None else f"; never fewer than {self.least_serving} "
        fewest += f"of {self.desired} served" if fewest else ""
        return (
            f"served {self.served}, failed {self.failed}, retried {self.retried}{fewest}; "
            f"{self.role} on {self.image} {self.result} in {self.seconds:.1f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {name: getattr(self, name) for name in self.__slots__}

    def raise_failure(self) -> None:
        """Raise HostFailed for any end but the one that was asked for."""
        again = f"fab deploy.image --role {self.role}"
        if self.result == "stopped":
            raise HostFailed(
                f"{self.role} hosts were not all replaced ({self.reason}) and going back failed: "
                f"{self.left}",
                why="hosts of both images serve",
                untouched="Hosts that serve were left in rotation",
                next=f"fab fleet.status; then {again}, which goes on with it",
            )
        if self.result == "rolled back":
            raise HostFailed(
                f"{self.role} hosts were not replaced by {self.image}: {self.reason}",
                untouched="Hosts of the image of before serve, as many as are desired",
                next="fab fleet.logs, and mend the image",
            )
        if self.failed:
            raise FlotillaError(
                f"every {self.role} host is of {self.image}, but {self.failed} requests failed",
                next="fab fleet.logs",
            )

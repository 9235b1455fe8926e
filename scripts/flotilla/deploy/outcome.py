"""How a deploy ended, and what that means for whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flotilla.errors import FlotillaError, HostFailed

Result = Literal["done", "nothing to do", "rolled back", "stopped"]


@dataclass(slots=True)
class Outcome:
    """How a deploy ended, and what the load balancers counted meanwhile.

    ``failed`` are answers 5xx, answers broken off, and the ``cut`` ones that a deploy ended itself
    at the drain deadline; ``left`` names hosts that are neither on the new release nor back on the
    old one; ``soak`` is what each watched host answered; ``first``: no host had a release, so
    nobody was served.
    """

    id: str
    version: str
    result: Result
    seconds: float
    served: int = 0
    failed: int = 0
    retried: int = 0
    redispatched: int = 0
    cut: int = 0
    done: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    first: bool = False
    probe: dict[str, Any] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    soak: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The result in one line, clients first."""
        cut = f" ({self.cut} cut off at the drain deadline)" if self.cut else ""
        return (
            f"served {self.served}, failed {self.failed}{cut}, retried {self.retried}; "
            f"{self.version} {self.result} in {self.seconds:.1f} s"
        )

    def add(self, late: Outcome) -> None:
        """Count in the hosts that came meanwhile. One that could not be changed is left behind."""
        for name in ("seconds", "served", "failed", "retried", "redispatched", "cut"):
            setattr(self, name, getattr(self, name) + getattr(late, name))
        self.done += late.done
        self.notes += late.notes
        self.steps |= late.steps
        self.soak |= late.soak
        if late.result != "done":
            self.result = "stopped"
            self.reason = f"hosts that came meanwhile: {late.reason}"
            self.left |= late.left or dict.fromkeys(late.steps, "runs what it came with")

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {name: getattr(self, name) for name in self.__slots__}

    def raise_failure(self) -> None:
        """Raise HostFailed for any end but the one that was asked for."""
        if self.result == "stopped":
            names = "; ".join(f"{host}: {why}" for host, why in self.left.items())
            raise HostFailed(
                f"{self.version} was not deployed ({self.reason}) and these hosts are left: "
                f"{names}",
                why="a host that failed stays out of rotation where that was still possible",
                untouched="The other hosts run what they ran before",
                next="fab fleet.status; mend the hosts, then: fab deploy.abort (all back), or "
                "fab deploy.run --adopt",
            )
        if self.result == "rolled back":
            raise HostFailed(
                f"{self.version} was not deployed: {self.reason}",
                untouched="Every host runs again what it ran before",
                next="fab fleet.logs, and mend the release",
            )
        if self.failed and not self.first:
            raise FlotillaError(
                f"{self.version} is deployed, but {self.failed} of {self.served} requests failed",
                next="fab fleet.logs",
            )

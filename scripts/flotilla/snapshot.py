"""The hosts of a fleet as they were at one moment: what every decision about them starts from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flotilla.errors import BadOption

# Only these take work; a stopped host is shown and left alone.
ACTIVE = frozenset({"pending", "running"})


@dataclass(frozen=True, slots=True)
class Host:
    """One EC2 instance of the fleet."""

    name: str  # <role>-<number>, or <role>-<end of the instance id> when the Name tag is unusable
    instance_id: str
    role: str
    number: int | None  # None with a fallback name
    zone: str
    state: str  # pending, running, stopping or stopped
    private_ip: str | None  # None while AWS has not given one yet
    public_ip: str | None
    image_id: str
    type: str
    launched_at: datetime
    tags: Mapping[str, str]
    asg: str | None  # the Auto Scaling group that owns it

    @property
    def is_active(self) -> bool:
        """Whether it runs or is about to."""
        return self.state in ACTIVE

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, times in ISO 8601; ``from_dict`` reads it back."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"launched_at": self.launched_at.isoformat(), "tags": dict(self.tags)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Host:
        """The host that ``as_dict`` described. Raises KeyError, TypeError or ValueError."""
        launched_at = datetime.fromisoformat(values["launched_at"]).astimezone(UTC)
        return cls(**{**values, "launched_at": launched_at})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every host at ``fetched_at`` (seconds since the epoch, taken before EC2 was asked).

    ``problems`` are sentences about hosts that cannot be told apart or placed; ``warning`` says why
    the snapshot is older than it should be.
    """

    fetched_at: float
    hosts: tuple[Host, ...] = ()
    problems: tuple[str, ...] = ()
    warning: str | None = None

    def age_seconds(self, now: float) -> float:
        """How old it is; a clock that went backwards makes it infinitely old."""
        age = now - self.fetched_at
        return age if age >= 0 else float("inf")

    def by_role(self, role: str) -> list[Host]:
        """The active hosts of a role, in order of their numbers."""
        return [host for host in self.hosts if host.role == role and host.is_active]

    def stopped(self, role: str) -> list[Host]:
        """The other hosts of a role: those that do not run."""
        return [host for host in self.hosts if host.role == role and not host.is_active]

    def host(self, name: str) -> Host:
        """The host with that name or instance id. Raises BadOption naming the others."""
        found = next((h for h in self.hosts if name in {h.name, h.instance_id}), None)
        if found:
            return found
        names = [host.name for host in self.hosts]
        close = difflib.get_close_matches(name, names, n=3)
        raise BadOption(
            f"there is no host {name!r}; the fleet has {_some(close or names)}",
            untouched="Nothing was changed",
            next="fab fleet.status",
        )


def ordered(hosts: Iterable[Host], roles: Iterable[str]) -> tuple[Host, ...]:
    """Hosts by role in the order of ``roles``, then by number, then by name."""
    rank = {role: place for place, role in enumerate(roles)}
    return tuple(
        sorted(
            hosts,
            key=lambda h: (
                rank.get(h.role, len(rank)),
                h.role,
                h.number is None,
                h.number or 0,
                h.name,
            ),
        )
    )


def _some(names: list[str], most: int = 12) -> str:
    if not names:
        return "no hosts"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

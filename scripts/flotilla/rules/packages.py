"""What apt would upgrade on a host, as it says so itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# apt-get -s: "Inst mysql-server-9.7 [9.7.4-1] (9.7.5-1 Debian:unstable [amd64])"
_UPGRADE = re.compile(r"^Inst (?P<name>\S+) \[(?P<old>[^\]]+)\] \((?P<new>\S+) ")


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One package that apt would upgrade."""

    package: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.package} {self.old} -> {self.new}"

    @property
    def changes_series(self) -> bool:
        """Whether more than the last number of the upstream version changes."""
        return _series(self.old) != _series(self.new)


def upgrades(lines: Iterable[str]) -> tuple[Upgrade, ...]:
    """What ``apt-get --simulate install --only-upgrade`` would do."""
    found = (_UPGRADE.match(line) for line in lines)
    return tuple(Upgrade(one["name"], one["old"], one["new"]) for one in found if one)


def _series(version: str) -> tuple[str, ...]:
    upstream = version.rpartition(":")[2].partition("-")[0]
    return tuple(upstream.split(".")[:2])

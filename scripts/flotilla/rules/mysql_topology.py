"""The words in which a MySQL cluster is described: one look at it, and the record of its primary.

Plain values without behaviour of their own; ``flotilla.rules.mysql`` rules on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Record:
    """Who is primary, as DynamoDB holds it: the term, and the host it was given to."""

    term: int
    instance_id: str
    uuid: str


# Errors of an applier that another try may not meet: a full disk or table space, locks.
PASSING = frozenset({1021, 1026, 1114, 1205, 1213})
_NUMBER = re.compile(r"Error_code: (?:MY-0*)?(\d+)")


@dataclass(frozen=True, slots=True)
class Replication:
    """How a member follows: threads are ON, OFF or CONNECTING; times are seconds."""

    host: str
    io: str
    applier: str
    received: str = ""
    error: str = ""
    lag_seconds: float = 0.0
    delay_seconds: int = 0
    # Whom the source has to prove its address by; empty where nothing is verified.
    authority: str = ""

    @property
    def is_running(self) -> bool:
        """Both halves work: the stream is connected and what arrives is applied."""
        return self.io == "ON" and self.applier == "ON"

    @property
    def is_stuck(self) -> bool:
        """The applier stopped at something that it will stop at again."""
        if self.applier == "ON" or not self.error:
            return False
        found = _NUMBER.search(self.error)
        return found is None or int(found[1]) not in PASSING


@dataclass(frozen=True, slots=True)
class SemiSync:
    """The two sides of semi-sync on one member; ``clients`` are replicas that acknowledge to it."""

    source: bool = False
    replica: bool = False
    acknowledging: bool = False
    clients: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """One server as it described itself. ``executed`` is its gtid_executed.

    ``term`` and ``term_uuid`` are the newest row of ops.term, None where there is no such table.
    ``closed``: it is offline and would be after a restart, because its data is being replaced; what
    it holds until then is of no use to anybody. ``authority`` is the file it believes certificates
    by, empty before it has one of the fleet's; ``certificate`` is from when to when its own is
    valid (epoch seconds), None where it has none that works.
    """

    name: str
    instance_id: str
    address: str
    uuid: str
    server_id: int
    version: tuple[int, int, int]
    read_only: bool
    super_read_only: bool
    offline: bool = False
    closed: bool = False
    executed: str = ""
    term: int | None = None
    term_uuid: str | None = None
    replication: Replication | None = None
    semi_sync: SemiSync = field(default_factory=SemiSync)
    faults: tuple[str, ...] = ()
    authority: str = ""
    requires_tls: bool = False
    certificate: tuple[float, float] | None = None

    @property
    def is_writable(self) -> bool:
        """An application could write here."""
        return not self.read_only and not self.offline

    @property
    def is_shut(self) -> bool:
        """Closed as a primary is for a failover, with its data in place: nobody can follow it."""
        return self.offline and self.super_read_only and not self.closed

    @property
    def rank(self) -> tuple[int, str]:
        """Order of names: mysql-2 before mysql-10."""
        digits = self.name.rpartition("-")[2]
        return (int(digits) if digits.isdecimal() else 0, self.name)

    @property
    def is_blank(self) -> bool:
        """Never held a transaction, a term or a source."""
        received = self.replication.received if self.replication else ""
        return not (self.executed or received or self.replication) and self.term is None


@dataclass(frozen=True, slots=True)
class Topology:
    """One look at a cluster.

    ``silent`` maps the members that did not answer to the reason. ``surplus[a, b]`` is what ``a``
    received or executed that ``b`` has not, as a GTID set; pairs with nothing are left out.
    ``stranded`` lack transactions that their primary has already purged; ``unusable`` are accounts
    that are missing or refuse their password on the primary; ``outdated`` members hold another
    password for their source than the one that they should log in with.
    """

    members: tuple[Member, ...]
    silent: Mapping[str, str] = field(default_factory=dict)
    surplus: Mapping[tuple[str, str], str] = field(default_factory=dict)
    stranded: frozenset[str] = frozenset()
    unusable: frozenset[str] = frozenset()
    outdated: frozenset[str] = frozenset()

    def by_instance(self, instance_id: str) -> Member | None:
        """The answering member on that instance."""
        return next((m for m in self.members if m.instance_id == instance_id), None)

    def named(self, name: str) -> Member | None:
        """The answering member of that name."""
        return next((m for m in self.members if m.name == name), None)

    def others(self, member: Member) -> tuple[Member, ...]:
        """Everybody who answered, but for one."""
        return tuple(m for m in self.members if m.name != member.name)

"""The words in which a whole fleet is described: one look at it, from every side that answers.

Plain values without behaviour of their own; ``flotilla.rules.status`` says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flotilla.rules import redis
from flotilla.rules.images import Image
from flotilla.rules.lb_certificate import Certificate, Renewal
from flotilla.rules.lb_maintenance import Notice
from flotilla.rules.restore_drill import Drilled
from flotilla.rules.rotation import Server


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system: bytes left for programs, and how much of its space and inodes is used."""

    path: str
    used_percent: float
    inodes_percent: float
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Tls:
    """A host's own certificate and the issuer it makes the next one with: when they end, in seconds
    since the epoch, None where there is none. ``hours`` is how long one is to last, None where the
    host does not say; ``error`` is why nothing is known.
    """

    ends_at: float | None = None
    issuer_ends_at: float | None = None
    hours: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a host says of itself.

    ``units`` is systemd's word by unit that its role needs ("active" is well), ``failed_units`` any
    other unit that failed. ``agent_missing`` is why the CloudWatch agent was left out, None where
    it was not. ``clock_offset_seconds`` is its clock minus the operator's. ``tls`` is
    None on a host that makes no certificates.
    """

    units: Mapping[str, str] = field(default_factory=dict)
    failed_units: tuple[str, ...] = ()
    disks: tuple[Disk, ...] = ()
    agent_missing: str | None = None
    clock_offset_seconds: float = 0.0
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """One host, as EC2 and as it says itself; ``silent`` is why it could not be asked.

    ``image`` is None when EC2 no longer has it; ``newer`` is the image that a host launched now
    would get, where that is another one.
    """

    name: str
    instance_id: str
    role: str
    zone: str
    state: str
    age_seconds: float
    image_id: str = ""
    image: Image | None = None
    newer: Image | None = None
    report: Report | None = None
    silent: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it runs or is about to, by EC2's word."""
        return self.state in {"pending", "running"}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a load balancer's statistics page counts: of now, and since its process started."""

    requests_per_second: int
    sessions: int
    errors: int  # answers 5xx
    milliseconds: int  # of the last 1,024 answers, on average


@dataclass(frozen=True, slots=True)
class Follows:
    """How a load balancer follows the application hosts in EC2.

    ``trouble`` is why it does not, ``notes`` what it left undone for safety, ``last`` its newest
    change ("add app-4", "" for none).
    """

    age_seconds: float
    hosts: int = 0
    trouble: str = ""
    notes: tuple[str, ...] = ()
    last: str = ""
    last_age_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Balancer:
    """One load balancer: its servers by its runtime socket, its VRRP state by its own word.

    ``servers`` is None, with ``error``, when the socket did not answer; ``traffic`` is None when
    the statistics page did not. ``vrrp`` is "" and ``follows`` None when nothing on the host knows.
    ``maintenance`` is who put up the page that clients get instead, None for nobody;
    ``certificates`` are those that it serves, ``renewal`` what is said of the next one, None where
    nobody on the host orders any.
    """

    name: str
    instance_id: str
    vrrp: str = ""
    note: str = ""
    servers: Mapping[str, Server] | None = None
    traffic: Traffic | None = None
    error: str = ""
    follows: Follows | None = None
    maintenance: Notice | None = None
    certificates: tuple[Certificate, ...] = ()
    renewal: Renewal | None = None


@dataclass(frozen=True, slots=True)
class App:
    """One application host.

    ``release`` is what ``current`` points to, ``served`` the version it answers with, ``ready`` the
    status of its readiness page (None: no answer). ``proxies`` is which servers its own HAProxy
    would connect to, by proxy; None, with ``error``, when that did not answer.
    """

    name: str
    release: str | None = None
    is_active: bool = False
    is_stale: bool = False
    served: str | None = None
    ready: int | None = None
    proxies: Mapping[str, tuple[str, ...]] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Backups:
    """When the newest full backup was taken (seconds since the epoch, None for never), why the
    archive of binary logs is not what it should be, "" when it is, and the newest restore drill.

    ``silent`` is why S3 did not tell of backups and drills, "" when it did: then only the archive's
    age is known.
    """

    newest: float | None
    objection: str
    at: float
    drilled: Drilled | None = None
    silent: str = ""


@dataclass(frozen=True, slots=True)
class RedisBackups:
    """When the newest backup of Redis was taken, in seconds since the epoch, None for never."""

    newest: float | None
    at: float


@dataclass(frozen=True, slots=True)
class World:
    """The whole fleet. ``wanted`` is how many hosts fleet.yml wants by role.

    ``mysql`` is what ``flotilla.mysql.status`` gives, None with ``mysql_error`` when it could not
    be had. ``edge_owner`` is the instance that has the Elastic IP ``edge_address``; both are "" for
    none, None when EC2 could not be asked. ``api_error`` is why AWS could not be asked, "" if it
    could. ``lock`` says who is changing the fleet now. ``backups`` and ``redis_backups`` are None
    when AWS did not tell. ``at`` is when all this was, by the operator's clock.
    """

    fleet: str
    wanted: Mapping[str, int]
    hosts: tuple[Host, ...] = ()
    inventory_age_seconds: float = 0.0
    inventory_warning: str = ""
    inventory_problems: tuple[str, ...] = ()
    edge_address: str | None = ""
    edge_owner: str | None = ""
    balancers: tuple[Balancer, ...] = ()
    apps: tuple[App, ...] = ()
    mysql: Mapping[str, Any] | None = None
    mysql_error: str = ""
    redis: tuple[redis.Member, ...] = ()
    redis_errors: Mapping[str, str] = field(default_factory=dict)
    api_error: str = ""
    lock: str = ""
    at: float = 0.0
    backups: Backups | None = None
    redis_backups: RedisBackups | None = None

    @property
    def is_blind(self) -> bool:
        """Whether no host was heard at all: then what they would have said is not known."""
        return not any(host.report for host in self.hosts)

    def by_role(self, role: str) -> list[Host]:
        """The active hosts of a role."""
        return [host for host in self.hosts if host.role == role and host.is_active]

    def named(self, instance_id: str | None) -> str:
        """A host's name by its instance id; the id itself for a stranger."""
        return next((h.name for h in self.hosts if h.instance_id == instance_id), instance_id or "")

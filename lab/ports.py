"""What the lab's parts promise each other: the seams, as types.

The core (hosts, network, API) and the edges (security groups, metadata, package proxy, faults) meet
only here, so that either side can be tested with the real other side or with a small stand-in.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


class Hosts(Protocol):
    """The real hosts behind the instances, by instance id (`i-...`)."""

    def netns(self, instance_id: str) -> str | None:
        """Name of the host's network namespace (as in `ip netns`), kept over stop and start; None
        if it has none.
        """

    def pid(self, instance_id: str) -> int | None:
        """Process id, on the machine, of the host's PID 1; None unless it runs."""

    def exec(
        self,
        instance_id: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` as root inside the host, not through SSH. Output is captured as text.

        Raises `lab.errors.HostNotRunning` when it is not running, `subprocess.TimeoutExpired` after
        `timeout` seconds. A non-zero exit is returned, not raised.
        """

    def in_netns(
        self,
        instance_id: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run the machine's own `argv` in the host's network namespace, whether or not the host
        runs.
        """

    def by_source_address(self, address: str) -> str | None:
        """The instance whose private address this is."""

    def running(self) -> list[str]:
        """Instance ids whose host runs (frozen ones included)."""

    def crash(self, instance_id: str) -> None:
        """Take the power away: every process ends at once, nothing is told, the disk stays.
        StartInstances recovers.
        """

    def freeze(self, instance_id: str) -> None:
        """Suspend every process of the host; it keeps its addresses and answers nothing."""

    def thaw(self, instance_id: str) -> None:
        """Let a frozen host go on. No effect on one that is not frozen."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One allowed flow of a security group. Groups and prefix lists are already resolved to
    addresses.
    """

    protocol: str  # "-1" for all, "tcp", "udp", "icmp", or a protocol number such as "112"
    from_port: int | None  # None: every port (or a protocol without ports)
    to_port: int | None
    peers: tuple[str, ...]  # IPv4 CIDRs, sorted; empty: matches nobody


@dataclass(frozen=True, slots=True)
class AclEntry:
    """One entry of a subnet's network ACL. Stateless: it also cuts established connections."""

    number: int
    action: Literal["allow", "deny"]
    protocol: str  # as in Rule
    from_port: int | None
    to_port: int | None
    cidr: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything that decides which packets one instance may send and receive."""

    instance_id: str
    address: str  # private IPv4
    subnet_cidr: str  # network ACLs do not filter traffic inside the subnet
    ingress: tuple[Rule, ...]
    egress: tuple[Rule, ...]
    acl_ingress: tuple[
        AclEntry, ...
    ] = ()  # by number; ends in an implicit deny; () means allow all
    acl_egress: tuple[AclEntry, ...] = ()


class Service(Protocol):
    """Something that runs in threads of the lab process until closed."""

    def close(self) -> None:
        """Stop answering and release the port. Idempotent, returns within 5 s."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the lab process hands to its parts."""

    hosts: Hosts
    ec2: Callable[[], Any]  # moto's EC2Backend of the lab's account and region
    backend: Callable[
        [str], Any
    ]  # any moto backend of the account and region, by service name ("autoscaling", "iam")
    account: str  # twelve digits
    region: str
    zones: tuple[str, ...]
    cache: str  # directory that outlives the lab (downloads, images)
    log: Callable[
        [str, Mapping[str, Any]], None
    ]  # log(event, fields): one JSON line in var/lab/log/lab.jsonl
    on_instance_state: Callable[
        [Callable[[str, str], None]], None
    ]  # register f(instance_id, new state name)
    # Held while a request to EC2, Auto Scaling or IAM is served; to be held by whoever changes
    # their state besides.
    lock: AbstractContextManager[Any] = field(default_factory=threading.RLock)

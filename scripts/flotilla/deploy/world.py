"""What a deploy acts on: every load balancer at once, and the release tool on each host."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from flotilla.errors import HostFailed, Refused, Unreachable
from flotilla.hosts.haproxy import Output, Runtime
from flotilla.rules.rotation import Counters, Server, Views

TOOL = "/usr/local/sbin/app-release"
_GRACE_SECONDS = 10

T = TypeVar("T")


class Balancers:
    """All load balancers, the passive one too: a command goes to each, an answer has one of each.

    Every method raises the first error of any of them, so "done" means done on all.
    """

    def __init__(self, runtimes: Mapping[str, Runtime], backend: str = "app") -> None:
        self._runtimes = dict(runtimes)
        self._backend = backend

    def __iter__(self) -> Any:
        return iter(self._runtimes)

    def order(self, server: str, *states: str) -> None:
        """Give ``server`` the states in one line, on every load balancer."""
        self._each(lambda lb: lb.set_state(server, *states, backend=self._backend))

    def servers(self) -> dict[str, dict[str, Server]]:
        """By load balancer: its servers by name."""
        return self._each(lambda lb: lb.servers(self._backend))

    def views(self, server: str) -> Views:
        """One server as each load balancer sees it. Raises HostFailed when one lost it."""
        found = self.servers()
        for balancer, servers in found.items():
            if server not in servers:
                raise HostFailed(f"{balancer} no longer has the server {server}")
        return {balancer: servers[server] for balancer, servers in found.items()}

    def counters(self) -> dict[str, Counters]:
        """By load balancer: what its backend has counted."""
        return self._each(lambda lb: lb.counters(self._backend))

    def is_sticky(self) -> bool:
        """Whether any of them keeps clients on a server by a cookie."""
        return any(self._each(lambda lb: lb.is_sticky(self._backend)).values())

    def demand_control(self) -> None:
        """Raise Refused unless every socket answers and may change states."""
        try:
            self._each(lambda lb: lb.demand_admin())
        except (Unreachable, HostFailed) as error:
            raise Refused(
                error.what,
                why="a host may leave rotation only when every load balancer was told so",
                untouched="Nothing was changed",
                next=error.next or "fab fleet.status",
            ) from error

    def _each(self, work: Callable[[Runtime], T]) -> dict[str, T]:
        with ThreadPoolExecutor(max_workers=max(1, len(self._runtimes))) as pool:
            answers = pool.map(work, self._runtimes.values())
            return dict(zip(self._runtimes, answers, strict=True))


class Releases(Protocol):
    """The release tool on the hosts; roles/app describes its verbs and answers."""

    def call(self, host: str, *words: str, seconds: float) -> dict[str, Any]:
        """Run one verb. Raises HostFailed with what the tool said, Unreachable."""


class Result(Output, Protocol):
    """What a command wrote and how it ended."""

    @property
    def stderr(self) -> str:
        """What it said to people."""

    @property
    def rc(self) -> int:
        """Its exit code."""


class Runner(Protocol):
    """What is asked of SSH; `flotilla.hosts.ssh.Runner` is one."""

    def run(
        self, host: str, command: str, *, sudo: bool, seconds: float, check: bool = True
    ) -> Result:
        """Run a shell command on a host. Raises Unreachable; HostFailed when it takes too long."""


class OverSsh:
    """The release tool, called through SSH."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def call(self, host: str, *words: str, seconds: float) -> dict[str, Any]:
        """Run one verb. Raises HostFailed with what the tool said, Unreachable."""
        command = shlex.join([TOOL, *words])
        allowed = seconds + _GRACE_SECONDS
        result = self._runner.run(host, command, sudo=True, seconds=allowed, check=False)
        try:
            answer: dict[str, Any] = json.loads(result.stdout)
        except ValueError:
            said = result.stderr.strip().splitlines() or [f"exit code {result.rc}, no message"]
            raise HostFailed(
                f"{host}: {said[-1].removeprefix('app-release: ')}",
                next=f"fab fleet.logs {host}",
            ) from None
        return answer


@dataclass(frozen=True, slots=True)
class World:
    """Everything a deploy acts on."""

    balancers: Balancers
    releases: Releases

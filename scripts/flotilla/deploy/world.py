"""What a deploy acts on: every load balancer at once, and the release tool on each host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.haproxy import Runtime
from flotilla.hosts.lines import Lines, Streams
from flotilla.rules.capacity import Load
from flotilla.rules.rotation import Counters, Server, Views
from flotilla.rules.soak import Sample

TOOL = "/usr/local/sbin/app-release"
# What it says when it cannot answer goes the same way.
_SERVE = f"{TOOL} serve 2>&1"
# Verbs that change nothing.
_LOOKS = frozenset({"status", "wait"})
_GRACE_SECONDS = 10
# Done while the host serves: clients come first, and unpacking a release takes a core for a second.
_BESIDE = frozenset({"status", "stage", "prune"})

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

    def order(self, server: str, *states: str, only: Collection[str] | None = None) -> None:
        """Give ``server`` the states in one line, on every load balancer or on some of them."""
        self.order_many({server: states}, only=only)

    def order_many(
        self, states: Mapping[str, Iterable[str]], only: Collection[str] | None = None
    ) -> None:
        """Give many servers their states: a hundred commands in one connection."""
        self._each(lambda lb: lb.set_states(states, self._backend), only)

    def cut_sessions(self, server: str) -> None:
        """End what is in flight on a server, on every load balancer."""
        self._each(lambda lb: lb.cut_sessions(server, self._backend))

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

    def loads(self) -> dict[str, Load]:
        """By load balancer: what its backend carries and could carry."""
        return self._each(lambda lb: lb.load(self._backend))

    def guarded(self, check: Callable[[], None]) -> Balancers:
        """The same ones; ``check`` is called before every change and may raise to forbid it."""
        runtimes = {name: lb.guarded(check) for name, lb in self._runtimes.items()}
        return Balancers(runtimes, self._backend)

    def samples(self) -> dict[str, dict[str, Sample]]:
        """By load balancer: what each of its servers has counted."""
        return self._each(lambda lb: lb.samples(self._backend))

    def shares(self) -> dict[str, dict[str, float]]:
        """By load balancer and server: the percentage of its weight it has now."""
        return self._each(lambda lb: lb.shares(self._backend))

    def why_not_alone(self) -> str | None:
        """A process of before a reload that still serves: it was not told what the new one was."""
        for balancer, workers in self._each(lambda lb: lb.old_workers()).items():
            if workers:
                return f"{balancer} still has {workers} process(es) of before its reload"
        return None

    def answering(self) -> tuple[Balancers, dict[str, str]]:
        """Those that answer, and why each of the others does not."""
        silent: dict[str, str] = {}

        def ask(name: str) -> None:
            try:
                self._runtimes[name].servers(self._backend)
            except FlotillaError as error:
                silent[name] = error.what

        with ThreadPoolExecutor(max_workers=max(1, len(self._runtimes))) as pool:
            list(pool.map(ask, self._runtimes))
        left = {name: lb for name, lb in self._runtimes.items() if name not in silent}
        return Balancers(left, self._backend), silent

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

    def _each(
        self, work: Callable[[Runtime], T], only: Collection[str] | None = None
    ) -> dict[str, T]:
        asked = {n: lb for n, lb in self._runtimes.items() if only is None or n in only}
        with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
            answers = pool.map(work, asked.values())
            return dict(zip(asked, answers, strict=True))


class Releases(Protocol):
    """The release tool on the hosts; roles/app describes its verbs and answers."""

    def call(self, host: str, *words: str, seconds: float) -> dict[str, Any]:
        """Run one verb. Raises HostFailed with what the tool said, Unreachable."""


class OverSsh:
    """The release tool: one of it on each host, that answers for as long as we are connected."""

    def __init__(self, runner: Streams) -> None:
        self._runner = runner
        self._lines: dict[str, Lines] = {}
        self._guard = threading.Lock()

    def call(self, host: str, *words: str, seconds: float) -> dict[str, Any]:
        """Run one verb. Raises HostFailed with what the tool said, Unreachable."""
        with self._guard:
            lines = self._lines.setdefault(host, Lines(self._runner, host, _SERVE))
        verb = words[0]
        question = {"words": words, "seconds": seconds, "behind": verb in _BESIDE}
        try:
            said = lines.ask(question, seconds=seconds + _GRACE_SECONDS, again=verb in _LOOKS)
        except ConnectionError as error:
            raise Unreachable(
                f"{host}: no answer during `app-release {verb}` ({error})", next="fab fleet.status"
            ) from error
        except HostFailed as error:
            # Not the tool, or not the one that we know.
            error.next = f"fab fleet.configure --limit {host}"
            raise
        if "error" in said:
            raise HostFailed(f"{host}: {said['error']}", next=f"fab fleet.logs {host}")
        done: dict[str, Any] = said["done"]
        return done


@dataclass(frozen=True, slots=True)
class World:
    """Everything a deploy acts on."""

    balancers: Balancers
    releases: Releases

    def guarded(self, check: Callable[[], None]) -> World:
        """The same world; ``check`` is called before every change and may raise to forbid it."""
        return World(self.balancers.guarded(check), _Guarded(self.releases, check))


class _Guarded:
    """A release tool that changes nothing without leave."""

    def __init__(self, releases: Releases, check: Callable[[], None]) -> None:
        self._releases = releases
        self._check = check

    def call(self, host: str, *words: str, seconds: float) -> dict[str, Any]:
        """As ``Releases.call``, and what ``check`` raises."""
        if words[0] not in _LOOKS:
            self._check()
        return self._releases.call(host, *words, seconds=seconds)

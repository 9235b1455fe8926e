"""Who watches a drill of MySQL: writers on every application host, a probe beside every server.

Writers go the application's own way, through the HAProxy of their host. A probe asks its one server
for a write, again and again, whatever anybody says about the roles: two servers that acknowledge
probes at once are two primaries. Rows of both are in the ledger that is closed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from flotilla.agent.ledger import Order
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.hosts.ssh import Runner
from flotilla.ledger import Ledger, forget, new_run, order, over_ssh, rows
from flotilla.mysql.accounts import Secrets
from flotilla.rules.ledger import Entry
from flotilla.settings import Settings
from flotilla.snapshot import Host

PROBE_SECONDS = 0.05
# Longer than a run takes, with the hosts that are rebuilt in it.
LIMIT_SECONDS = 900.0
# The checklist's rate: four writers, a row every 40 ms.
PAUSE_SECONDS = 0.04


class Clients:
    """Writers and probes at work, from ``with`` to ``fetch``."""

    def __init__(
        self,
        settings: Settings,
        known: Secrets,
        runner: Runner,
        *,
        apps: Iterable[Host],
        servers: Iterable[Host],
        writers: int,
    ) -> None:
        self._settings, self._known, self._runner = settings, known, runner
        self._apps = {host.name: host for host in apps}
        self._servers = {host.name: host for host in servers}
        self._writers = writers
        self._run = new_run()
        self._stack = ExitStack()
        self._ledgers: list[tuple[Host, Ledger]] = []

    def __enter__(self) -> Self:
        """Start all of them. Raises HostFailed, Unreachable."""
        try:
            # Writers first: they make the table.
            self._start([(h, self._order(h.name, self._writers)) for h in self._apps.values()])
            self._start([(h, self._probe(h.name)) for h in self._servers.values()])
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def revive(self, name: str) -> None:
        """Another probe beside a server whose host was down: the first one went with it."""
        number = sum(host.name == name for host, _ in self._ledgers)
        self._start([(self._servers[name], self._probe(f"{name}.{number}"))])

    def fetch(self) -> tuple[dict[str, list[Entry]], dict[str, list[Entry]], dict[str, str]]:
        """End all; entries of writers and of probes by host, and whose could not be fetched."""
        clients: dict[str, list[Entry]] = {name: [] for name in self._apps}
        probes: dict[str, list[Entry]] = {name: [] for name in self._servers}
        missing: dict[str, str] = {}
        with ThreadPoolExecutor(max(1, len(self._ledgers))) as pool:
            answers = pool.map(lambda one: _tried(one[1].stop), self._ledgers)
        for (host, _), answer in zip(self._ledgers, answers, strict=True):
            if isinstance(answer, FlotillaError):
                missing[host.name] = answer.what
            else:
                (clients if host.name in clients else probes)[host.name] += answer
        return clients, probes, missing

    def rows(self, primary: Server) -> Mapping[str, str]:
        """What is there: id to the UUID of the server that took it. Then it is taken away."""
        found = rows(primary, self._order("", 0))
        forget(primary, self._order("", 0))
        return found

    def _start(self, wanted: list[tuple[Host, Order]]) -> None:
        made = [(host, Ledger(host.name, over_ssh(self._runner, host), o)) for host, o in wanted]
        with ThreadPoolExecutor(max(1, len(made))) as pool:
            begun = [pool.submit(ledger.__enter__) for _, ledger in made]
        for _, ledger in made:
            self._stack.push(ledger.__exit__)
        self._ledgers += made
        for one in begun:
            one.result()

    def _order(self, label: str, writers: int) -> Order:
        return order(
            self._settings,
            self._known,
            writers=writers,
            pause_seconds=PAUSE_SECONDS,
            run=self._run,
            label=label,
            limit_seconds=LIMIT_SECONDS,
        )

    def _probe(self, label: str) -> Order:
        return order(
            self._settings,
            self._known,
            writers=1,
            pause_seconds=PROBE_SECONDS,
            run=self._run,
            label=label,
            is_probe=True,
            limit_seconds=LIMIT_SECONDS,
        )


def _tried(work: Callable[[], list[Entry]]) -> list[Entry] | FlotillaError:
    try:
        return work()
    except FlotillaError as error:
        return error

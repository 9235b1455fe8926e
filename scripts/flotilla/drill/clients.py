"""Who watches a drill: writers on every application host, and what else a store is watched by.

Writers go the application's own way, through the HAProxy of their host. What they were told is in
the ledger that is closed afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from flotilla.agent.ledger import Order
from flotilla.errors import FlotillaError
from flotilla.hosts.ssh import Runner
from flotilla.ledger import Ledger, new_run, over_ssh
from flotilla.rules.ledger import Entry
from flotilla.snapshot import Host

# Longer than a run takes, with the hosts that are rebuilt in it.
LIMIT_SECONDS = 900.0
# The checklist's rate: four writers, a row every 40 ms.
PAUSE_SECONDS = 0.04


class Clients(ABC):
    """Writers at work, from ``with`` to ``fetch``. A kind of store says what they write."""

    def __init__(self, runner: Runner, *, apps: Iterable[Host], writers: int) -> None:
        self._runner = runner
        self._apps = {host.name: host for host in apps}
        self._writers = writers
        self._run = new_run()
        self._stack = ExitStack()
        self._ledgers: list[tuple[Host, Ledger]] = []

    def __enter__(self) -> Self:
        """Start all of them. Raises HostFailed, Unreachable."""
        try:
            self._begin()
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

    @abstractmethod
    def rows(self, primary: str) -> Mapping[str, str]:
        """What is there on the member ``primary``: id to the server that took it.

        Then it is taken away. Raises FlotillaError.
        """

    def revive(self, name: str) -> None:
        """A member's host was down and is up again: begin anew whatever ran there."""
        del name  # writers are elsewhere

    def fetch(self) -> tuple[dict[str, list[Entry]], dict[str, list[Entry]], dict[str, str]]:
        """End all; entries of writers and of probes by host, and whose could not be fetched.

        A probe is a client beside a server, which asks that one alone.
        """
        clients: dict[str, list[Entry]] = {name: [] for name in self._apps}
        probes: dict[str, list[Entry]] = {name: [] for name in self._probed()}
        missing: dict[str, str] = {}
        with ThreadPoolExecutor(max(1, len(self._ledgers))) as pool:
            answers = pool.map(lambda one: _tried(one[1].stop), self._ledgers)
        for (host, _), answer in zip(self._ledgers, answers, strict=True):
            if isinstance(answer, FlotillaError):
                missing[host.name] = answer.what
            else:
                (clients if host.name in clients else probes)[host.name] += answer
        return clients, probes, missing

    @abstractmethod
    def _order(self, label: str, writers: int) -> Order:
        """What the writers of a host write."""

    def _begin(self) -> None:
        self._start([(h, self._order(h.name, self._writers)) for h in self._apps.values()])

    def _probed(self) -> Iterable[str]:
        return ()

    def _start(self, wanted: list[tuple[Host, Order]]) -> None:
        made = [(host, Ledger(host.name, over_ssh(self._runner, host), o)) for host, o in wanted]
        with ThreadPoolExecutor(max(1, len(made))) as pool:
            begun = [pool.submit(ledger.__enter__) for _, ledger in made]
        for _, ledger in made:
            self._stack.push(ledger.__exit__)
        self._ledgers += made
        for one in begun:
            one.result()


def _tried(work: Callable[[], list[Entry]]) -> list[Entry] | FlotillaError:
    try:
        return work()
    except FlotillaError as error:
        return error

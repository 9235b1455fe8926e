"""Who watches a drill of Redis: writers on application hosts, with or without WAIT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flotilla.agent.ledger_redis import Order
from flotilla.drill import clients
from flotilla.drill.clients import LIMIT_SECONDS, PAUSE_SECONDS
from flotilla.hosts.ssh import Runner
from flotilla.redis.ledger import Access, order, taken
from flotilla.snapshot import Host


class Clients(clients.Clients):
    """Writers; ``addresses`` are the servers' by member. ``known`` is what the
    application knows.

    No probe asks a server past HAProxy: an old primary may take such a write until it sees that it
    has no replica, and what counts is what applications are led to.
    """

    def __init__(
        self,
        known: Access,
        runner: Runner,
        *,
        apps: Iterable[Host],
        addresses: Mapping[str, str],
        writers: int,
        wait_replicas: int,
    ) -> None:
        super().__init__(runner, apps=apps, writers=writers)
        self._known, self._addresses, self._wait = known, addresses, wait_replicas

    def rows(self, primary: str) -> Mapping[str, str]:
        """See ``clients.Clients``; servers are addresses."""
        reader = next(iter(self._apps.values()))
        return taken(self._runner, reader, self._addresses[primary], self._order("", 0))

    def _order(self, label: str, writers: int) -> Order:
        return order(
            self._known,
            run=self._run,
            label=label,
            writers=writers,
            pause_seconds=PAUSE_SECONDS,
            limit_seconds=LIMIT_SECONDS,
            wait_replicas=self._wait,
        )

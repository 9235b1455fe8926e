"""Who watches a drill of MySQL: writers on application hosts, and a probe beside every server.

A probe asks its one server for a write, again and again, whatever anybody says about the roles: two
servers that acknowledge probes at once are two primaries. Its rows are in the ledger too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flotilla.agent.ledger_mysql import Order
from flotilla.drill import clients
from flotilla.drill.clients import LIMIT_SECONDS, PAUSE_SECONDS
from flotilla.hosts.mysql import Server
from flotilla.hosts.ssh import Runner
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.ledger import forget, order, rows
from flotilla.settings import Settings
from flotilla.snapshot import Host

PROBE_SECONDS = 0.05


class Clients(clients.Clients):
    """Writers and probes; ``server`` gives a session on a member that may read everything."""

    def __init__(
        self,
        settings: Settings,
        known: Secrets,
        runner: Runner,
        *,
        apps: Iterable[Host],
        servers: Iterable[Host],
        server: Callable[[str], Server],
        writers: int,
    ) -> None:
        super().__init__(runner, apps=apps, writers=writers)
        self._settings, self._known, self._server = settings, known, server
        self._servers = {host.name: host for host in servers}

    def revive(self, name: str) -> None:
        """Another probe beside a server whose host was down: the first one went with it."""
        number = sum(host.name == name for host, _ in self._ledgers)
        self._start([(self._servers[name], self._probe(f"{name}.{number}", self._servers[name]))])

    def rows(self, primary: str) -> Mapping[str, str]:
        """See ``clients.Clients``; servers are UUIDs."""
        server = self._server(primary)
        found = rows(server, self._order("", 0))
        forget(server, self._order("", 0))
        return found

    def _begin(self) -> None:
        # Writers first: they make the table.
        super()._begin()
        self._start([(h, self._probe(h.name, h)) for h in self._servers.values()])

    def _probed(self) -> Iterable[str]:
        return self._servers

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

    def _probe(self, label: str, host: Host) -> Order:
        return order(
            self._settings,
            self._known,
            writers=1,
            pause_seconds=PROBE_SECONDS,
            run=self._run,
            label=label,
            is_probe=True,
            # What a server proves beside its names.
            host=host.private_ip or "",
            limit_seconds=LIMIT_SECONDS,
        )

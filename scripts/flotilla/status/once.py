"""SSH that tries a host once in a look: a dead one costs its time once, however many ask for it."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

from flotilla.errors import Unreachable
from flotilla.hosts.access import gateway
from flotilla.hosts.ssh import Runner
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot


class OnceRunner(Runner):
    """A Runner that remembers who could not be reached, until ``forget``.

    Without it a bastion that hangs was waited for by each host in turn: 49 s for twelve.
    """

    def __init__(self, settings: Settings, snapshot: Snapshot, *, connect_seconds: float) -> None:
        super().__init__(settings, snapshot, connect_seconds=connect_seconds)
        self._bastion = gateway(snapshot.hosts)
        self._gone: dict[str, Unreachable] = {}
        self._turns: dict[str, threading.RLock] = defaultdict(threading.RLock)
        self._turns_guard = threading.Lock()

    def forget(self) -> None:
        """Try everybody again from now on."""
        self._gone.clear()

    def connection(self, host: Host | str) -> Any:
        """As Runner's, but a host or bastion that has failed since ``forget`` fails at once."""
        target = self._snapshot.host(host) if isinstance(host, str) else host
        if self._bastion and target.instance_id != self._bastion.instance_id:
            self.connection(self._bastion)
        with self._turns_guard:
            turn = self._turns[target.instance_id]
        with turn:
            if target.instance_id in self._gone:
                raise self._gone[target.instance_id]
            try:
                return super().connection(target)
            except Unreachable as error:
                self._gone[target.instance_id] = error
                raise

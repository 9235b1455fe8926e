"""SSH to the load balancers of now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flotilla import inventory
from flotilla.hosts.access import prepare
from flotilla.hosts.ssh import Runner
from flotilla.settings import Settings
from flotilla.snapshot import Snapshot


@contextmanager
def reached(settings: Settings) -> Iterator[tuple[Runner, Snapshot]]:
    """A runner for the hosts as EC2 has them now, closed at the end."""
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    prepare(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        yield runner, snapshot

"""Take the cluster's lease when a watcher has it for a moment, to mend its own server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from flotilla.aws.lease import Held
from flotilla.lock import Lock
from flotilla.mysql import store
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

# A watcher is done in a moment; a lease of its kind that was left behind ends in this time.
LEASE_SECONDS = 25.0


@contextmanager
def leased(settings: Settings, reason: str, *, seconds: float = LEASE_SECONDS) -> Iterator[Lock]:
    """The lease, as soon as whoever has it is done. Raises Held when that takes too long."""
    with ExitStack() as stack:

        def taken() -> Lock | None:
            with suppress(Held):
                return stack.enter_context(store.lock(settings, reason))
            return None

        try:
            lock = until(taken, seconds=seconds, every=1.0)
        except DeadlineError:
            lock = stack.enter_context(store.lock(settings, reason))
        yield lock

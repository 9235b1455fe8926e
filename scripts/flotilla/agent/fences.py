"""Close an old primary from another host, by how it met the last try to reach it.

- It answers: its own server closes it.
- Nobody listens on its port: its server is gone, and starts read-only, so it is closed already;
  when it comes back, that is seen.
- It is silent: frozen, cut off or overloaded, it may go on at any moment, so EC2 stops its host.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from flotilla.aws.peers import CLOSED
from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts.mysql import PortClosedError, Server
from flotilla.mysql import takeover
from flotilla.mysql.fencing import Fence, Fencing, ServerFence
from flotilla.rules.mysql_failover import How, Opening
from flotilla.rules.mysql_verdict import Reach

# A server that crashed is back within a few; one that is not stays closed until somebody starts it.
RETURN_SECONDS = 20.0
# EC2 takes tens of seconds to stop a host.
STOP_SECONDS = 300.0
POLL_SECONDS = 1.0

log = logging.getLogger("flotilla.watcher")


class Stops(Protocol):
    """Who stops hosts."""

    def state(self, instance_id: str) -> str:
        """The state of an instance in EC2's words."""

    def stop(self, instance_id: str) -> None:
        """Ask for it to be stopped; does not wait."""


def fence(reach: Reach, server: Server, opened: Opening, stops: Stops) -> Fence:
    """What closes the old primary of a failover; ``server`` is a session for it alone."""
    if opened.how is How.SERVER:
        return ServerFence(server)
    if reach is Reach.REFUSES:
        return Fencing(lambda: _gone(server, opened, stops))
    return Fencing(lambda: _stopped(opened, stops))


def _gone(
    server: Server,
    opened: Opening,
    stops: Stops,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    name = opened.old.name
    start = clock()
    while clock() - start < RETURN_SECONDS:
        try:
            rows = server.query("SELECT @@GLOBAL.super_read_only AS closed", seconds=POLL_SECONDS)
        except PortClosedError:
            sleep(POLL_SECONDS / 2)
            continue
        except FlotillaError:
            # Neither gone nor there: what it will do is not known.
            return _stopped(opened, stops)
        if not rows[0]["closed"]:
            takeover.fence(server)
        return f"the server of {name} was gone, and came back read-only"
    return f"the server of {name} is gone, and starts read-only"


def _stopped(
    opened: Opening,
    stops: Stops,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Stop the host, and wait until EC2 says so; asked again for as long as it is not on its way.

    Raises HostFailed after STOP_SECONDS.
    """
    place, start = opened.old, clock()
    trouble, asked = "", False
    while clock() - start < STOP_SECONDS:
        try:
            state = stops.state(place.instance_id)
            if state in CLOSED:
                return f"EC2 says that {place.name} ({place.instance_id}) is {state}"
            if state != "stopping" or not asked:
                stops.stop(place.instance_id)
                asked = True
            trouble = f"it is {state}"
        except FlotillaError as error:
            if error.what != trouble:
                log.warning("fence %s: %s", place.name, error.what)
            trouble = error.what
        sleep(POLL_SECONDS)
    raise HostFailed(
        f"{place.name} ({place.instance_id}) is not stopped after {STOP_SECONDS:g} s: {trouble}",
        "it may come back and take connections",
        next=f"stop instance {place.instance_id} by hand",
    )

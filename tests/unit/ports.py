"""Ports of loopback that no other test takes, and no connection of another test either."""

from __future__ import annotations

import itertools
import os
import socket

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))

# Below Linux' ephemeral ports (32768 and up): a port that `bind` to 0 names is any client's to
# take before the server that it was asked for has started, or while it is started again.
_next = itertools.count(20_000 + 1_000 * (WORKER % 12))


def free_port() -> int:
    """A port of 127.0.0.1 that is free and given to nobody else in this run."""
    while True:
        port = next(_next)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

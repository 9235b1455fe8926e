"""Print what a run of the Redis ledger left behind, and take it away.

Runs on an application host. Input: one line of JSON (an ``Order`` of ``ledger_redis``). Output: the
fields of its hash as JSON, each with the address of the server that took it.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing

from flotilla.agent.ledger_redis import READY, Order, connect


def main() -> None:
    """Read, print, delete."""
    order = Order(**json.loads(sys.stdin.readline()))
    with closing(connect(order)) as client:
        found = client.hgetall(order.key)
        client.delete(order.key)
    found.pop(READY, None)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

"""Hold every connection a server has to give, as a runaway client does.

Runs on an application host. Input: one line of JSON (an ``Order`` of the ledger), then the end of
the input when it is enough. Output: "full N" when the first connection beyond N was refused.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from typing import Any

import pymysql

from flotilla.agent.ledger_mysql import Order, connect

TOO_MANY = 1040
# What somebody else gives back is taken as well, but not in a busy loop.
AGAIN_SECONDS = 0.1


def _until_the_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> None:
    """Take connections until the input ends."""
    order = Order(**json.loads(sys.stdin.readline()))
    stop = threading.Event()
    threading.Thread(target=_until_the_end, args=[stop], daemon=True).start()
    held: list[Any] = []
    told = False
    while not stop.is_set() and len(held) < order.writers:
        try:
            held.append(connect(order)[0])
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            if not told and error.args and error.args[0] == TOO_MANY:
                sys.stdout.write(f"full {len(held)}\n")
                sys.stdout.flush()
                told = True
            stop.wait(AGAIN_SECONDS)
    stop.wait(order.limit_seconds)
    for connection in held:
        with suppress(pymysql.err.MySQLError, OSError):
            connection.close()


if __name__ == "__main__":
    main()

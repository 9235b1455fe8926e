"""Say which passwords servers take: each is tried, on a connection of its own, and nothing else.

Input: one line of JSON (an ``Order``). Output: a JSON object, "host:port" to a word for each
password in their order: "accepted", "refused", or why neither is known.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ACCEPTED, REFUSED = "accepted", "refused"
ANSWER_SECONDS = 5.0
# Access denied: the only answer of MySQL that speaks of the password.
_DENIED = 1045
# What the program imports and a host may lack.
CARRY = {"mysql": ("pymysql",), "redis": ("redis", "async_timeout")}


@dataclass(frozen=True, slots=True, repr=False)
class Order:
    """Whom to log in as, where ("host", port), with which passwords. No repr: no logs.

    A server has to prove its ``host`` by what ``authority`` (PEM) vouches for before it is told.
    """

    engine: str
    user: str
    passwords: Sequence[str]
    targets: Sequence[tuple[str, int]]
    authority: str = ""


def answers(order: Order) -> dict[str, list[str]]:
    """What every target says to every password."""
    ask = _mysql if order.engine == "mysql" else _redis
    return {
        f"{host}:{port}": [ask(order, host, port, password) for password in order.passwords]
        for host, port in order.targets
    }


def _mysql(order: Order, host: str, port: int, password: str) -> str:
    import pymysql  # noqa: PLC0415  the other engine's hosts do not have it

    try:
        connection = pymysql.connect(
            host=host,
            port=port,
            user=order.user,
            password=password,
            ssl=ssl.create_default_context(cadata=order.authority),
            connect_timeout=int(ANSWER_SECONDS),
            read_timeout=ANSWER_SECONDS,
            write_timeout=ANSWER_SECONDS,
        )
    except (pymysql.err.MySQLError, OSError, EOFError) as error:
        code = error.args[0] if error.args else 0
        return REFUSED if code == _DENIED else f"{type(error).__name__} {code}"
    connection.close()
    return ACCEPTED


def _redis(order: Order, host: str, port: int, password: str) -> str:
    import redis  # noqa: PLC0415  the other engine's hosts do not have it
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    untyped: Any = redis
    connection: Any = untyped.SSLConnection(
        host=host,
        port=port,
        username=order.user,
        password=password,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        ssl_ca_data=order.authority,
        ssl_check_hostname=True,
        # AUTH and no HELLO, which some accounts may not say.
        protocol=2,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        connection.connect()
    except redis.exceptions.AuthenticationError:
        return REFUSED
    except (redis.exceptions.RedisError, OSError) as error:
        return type(error).__name__
    finally:
        connection.disconnect()
    return ACCEPTED


def main() -> None:
    """Read, try, print."""
    said = json.loads(sys.stdin.readline())
    targets = [(host, port) for host, port in said["targets"]]
    order = Order(**said | {"targets": targets})
    json.dump(answers(order), sys.stdout)


if __name__ == "__main__":
    main()

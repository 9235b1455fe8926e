"""A client that writes through whoever is offered as the primary and remembers what was acked.

    ledger.py SECONDS ADDRESS,ADDRESS,...

Prints one JSON object: acked, lost (acknowledged and no longer there), gap_seconds (the longest
time without an acknowledgement), primaries (addresses that acknowledged writes, in order).
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

KEY = "ledger"


def offered(addresses: list[str]) -> str:
    """The one host whose health endpoint answers 200; empty while there is none, or two."""
    found = []
    for address in addresses:
        connection = http.client.HTTPConnection(address, 3381, timeout=0.3)
        try:
            connection.request("GET", "/primary")
            if connection.getresponse().status == http.HTTPStatus.OK:
                found.append(address)
        except OSError:
            pass
        finally:
            connection.close()
    return found[0] if len(found) == 1 else ""


def client(address: str) -> redis.Redis:
    return redis.Redis(
        host=address,
        username="app",
        password=os.environ["REDIS_PASSWORD"],
        ssl=True,
        ssl_ca_certs="/etc/flotilla/tls/authority.pem",
        ssl_check_hostname=True,
        socket_timeout=0.5,
        socket_connect_timeout=0.5,
        retry=Retry(NoBackoff(), 0),
    )


def main() -> None:
    seconds, addresses = float(sys.argv[1]), sys.argv[2].split(",")
    acked: list[int] = []
    primaries: list[str] = []
    number, last, gap, address = 0, time.monotonic(), 0.0, ""
    connection: redis.Redis | None = None
    deadline = last + seconds
    while time.monotonic() < deadline:
        number += 1
        try:
            if not address:
                address = offered(addresses)
                connection = client(address) if address else None
            if connection is None:
                time.sleep(0.05)
                continue
            connection.sadd(KEY, number)
        except redis.RedisError:
            address, connection = "", None
            continue
        now = time.monotonic()
        gap, last = max(gap, now - last), now
        acked.append(number)
        if primaries[-1:] != [address]:
            primaries.append(address)
        if len(acked) == 200:
            Path("/root/ledger.started").touch()
        time.sleep(0.002)
    gap = max(gap, time.monotonic() - last)
    there = {int(one) for one in client(offered(addresses)).smembers(KEY)}
    lost = [one for one in acked if one not in there]
    json.dump(
        {
            "acked": len(acked),
            "lost": len(lost),
            "gap_seconds": round(gap, 2),
            "primaries": primaries,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()

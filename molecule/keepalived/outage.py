"""A client outside the fleet that asks through the Elastic IP twenty times a second.

    outage.py ADDRESS SECONDS

Any HTTP answer counts: with no application behind it, HAProxy's own error page says that a load
balancer serves. Prints one JSON object: answered, missed, outage_seconds (the longest time between
two answers).
"""

from __future__ import annotations

import http.client
import json
import sys
import time


def main() -> None:
    address, seconds = sys.argv[1], float(sys.argv[2])
    answered = missed = 0
    outage, last = 0.0, time.monotonic()
    deadline = last + seconds
    while (started := time.monotonic()) < deadline:
        connection = http.client.HTTPConnection(address, 80, timeout=0.4)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            answered += 1
            outage, last = max(outage, time.monotonic() - last), time.monotonic()
        except (OSError, http.client.HTTPException):
            missed += 1
        finally:
            connection.close()
        time.sleep(max(0.0, 0.05 - (time.monotonic() - started)))
    outage = max(outage, time.monotonic() - last)
    json.dump(
        {"answered": answered, "missed": missed, "outage_seconds": round(outage, 2)}, sys.stdout
    )


if __name__ == "__main__":
    main()

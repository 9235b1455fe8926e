"""One order in a process of its own, which ends itself before a step: ``python ordering.py``.

Its one argument is JSON: api, directory, domain, places, and ``die_at``, "" for never.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from flotilla.aws.lean import Api
from flotilla.aws.signature import Keys
from flotilla.certificate.order import Authority, Orderer, Place
from flotilla.certificate.store import Store

REGION = "eu-central-1"
# In the order they come in; "fetch what is left" is one of a repeated order only.
STEPS = (
    *("account", "order", "token", "served", "answer", "validated", "finalize", "fetch"),
    *("store", "forget"),
)


def store_at(api: str) -> Store:
    """The shared parameters of the lab's fleet, in the account at a URL."""
    # The first call of an account that runs in our own process may take seconds.
    found = Api(REGION, lambda: Keys("a", "b"), endpoint_url=api, seconds=20.0)
    return Store(found, "flotilla", "lab")


def orderer(asked: dict[str, Any], now: Callable[[], float] = time.time) -> Orderer:
    """As the service has it, on other addresses and ports."""

    def step(name: str) -> None:
        if name == asked["die_at"]:
            os._exit(9)

    places = [Place(**one) for one in asked["places"]]
    authority = Authority(asked["directory"], "ops@shop.example")
    return Orderer(
        store_at(asked["api"]), authority, asked["domain"], lambda: places, step=step, now=now
    )


if __name__ == "__main__":
    sys.stdout.write(orderer(json.loads(sys.argv[1])).run().serial + "\n")

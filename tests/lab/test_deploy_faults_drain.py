"""Requests that are under way when a host leaves: short ones, long ones, and those of a session."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

import pytest
from guests import needs_lab, until
from rolling import Rolling, on_host

from flotilla.traffic import Background

pytestmark = [needs_lab, pytest.mark.drill]

LONG_SECONDS = 8
KILL_APP = "systemctl kill --signal=KILL app.service"


def test_an_application_that_dies_costs_no_reader_anything_and_no_entry_is_lost(
    fleet: Rolling,
) -> None:
    with fleet.clients() as clients:
        clients.mark("dying")
        for host in ("app-1", "app-2"):
            fleet.command(host, KILL_APP)
            until(lambda: not fleet.why_not_whole(fleet.version), 30, "it is back")
        seen = clients.stop()
    # A client may send an entry again, because it has an id: nobody else may.
    assert seen["failed"] == 0, seen["failures"]
    fleet.is_whole(fleet.version)


def test_an_application_that_dies_while_it_is_drained_does_not_stop_the_deploy(
    fleet: Rolling,
) -> None:
    with (
        fleet.clients() as clients,
        fleet.deploying(
            r"after order \S+ state drain",
            on_host(KILL_APP),
        ) as run,
    ):
        outcome = run.exits(0)
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"]) == ("done", 0)
    fleet.is_whole(fleet.other)


def test_long_requests_are_waited_for(fleet: Rolling) -> None:
    with fleet.clients() as clients, long_requests(fleet) as long:
        time.sleep(1)  # some are under way on every host
        outcome = fleet.deploy()
        seen = long.stop()
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"]) == ("done", 0)
    assert seen["failed"] == 0, seen["failures"]
    assert seen["p50_ms"] >= LONG_SECONDS * 1000
    fleet.is_whole(fleet.other)


@contextmanager
def long_requests(fleet: Rolling) -> Iterator[Background]:
    """Clients of requests that take LONG_SECONDS, three a second."""
    page = f"/slow?seconds={LONG_SECONDS}"
    with Background(
        *("--url", fleet.url, "--rate", "3", "--page", page, "--mix", "keep-alive=1,close=1")
    ) as long:
        yield long


class Listener:
    """A client of an answer that never ends: connects again when it is cut, and counts that."""

    def __init__(self, fleet: Rolling, path: str = "/events") -> None:
        self._address = fleet.url.removeprefix("http://")
        self._path = path
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.ticks = 0
        self.cuts = 0
        self.longest_gap = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.ticks, 10, "the stream has begun")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(10)

    def _listen(self) -> None:
        last = time.monotonic()
        while not self._stopped.is_set():
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(self._address, timeout=5)
                connection.request("GET", self._path)
                answer = connection.getresponse()
                while answer.status == 200 and not self._stopped.is_set():
                    if not answer.readline():
                        break
                    now = time.monotonic()
                    self.longest_gap = max(self.longest_gap, now - last)
                    last, self.ticks = now, self.ticks + 1
            if not self._stopped.is_set():
                self.cuts += 1
                time.sleep(0.05)

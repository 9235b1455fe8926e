"""Requests that are under way when a host leaves: short ones, long ones, and those of a session."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Self

import pytest
from guests import needs_lab, until
from rolling import Rolling, on_host

from flotilla.snapshot import Host
from flotilla.traffic import Background

pytestmark = [needs_lab, pytest.mark.drill]

LONG_SECONDS = 8
DRAIN = r"after order \S+ state drain"
KILL_APP = "systemctl kill --signal=KILL app.service"


def test_an_application_that_dies_costs_no_reader_anything_and_no_entry_is_lost(
    fleet: Rolling,
) -> None:
    with fleet.clients() as clients:
        for host in fleet.hosts("app")[:2]:
            before = restarts(fleet, host)
            fleet.command(host.name, KILL_APP)
            until(lambda: restarts(fleet, host) > before, 20, "systemd starts it again")  # noqa: B023
            until(lambda: not fleet.why_not_whole(fleet.version), 30, "it serves again")
        # A client may send an entry again, because it has an id: nobody else may.
        clients.saw_nothing()
    fleet.is_whole(fleet.version)


def restarts(fleet: Rolling, host: Host) -> int:
    """How often the application of a host was started again after it died."""
    return int(fleet.command(host.name, "systemctl show app.service -P NRestarts"))


def test_an_application_that_dies_while_it_is_drained_does_not_stop_the_deploy(
    fleet: Rolling,
) -> None:
    with (
        fleet.clients() as clients,
        fleet.deploying(
            DRAIN,
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


def test_a_request_longer_than_the_deadline_stops_the_deploy_and_is_not_cut(
    fleet: Rolling,
) -> None:
    hurry = {"deploy.drain_seconds": 3, "deploy.drain_overrun": "abort"}
    with fleet.clients() as clients, long_requests(fleet) as long:
        time.sleep(1)
        with fleet.deploying(DRAIN, "true", settings=hurry) as run:
            outcome = run.exits(2)
        seen = long.stop()
        clients.saw_nothing()
    assert outcome["result"] == "rolled back"
    assert "in flight" in outcome["reason"]
    assert seen["failed"] == 0, seen["failures"]
    fleet.is_whole(fleet.version)


def test_an_answer_that_never_ends_is_cut_at_the_deadline_and_counted(fleet: Rolling) -> None:
    hurry = {"deploy.drain_seconds": 3, "deploy.drain_overrun": "cut"}
    fleet.deploy(fleet.releases["streams"])
    with fleet.clients() as clients, Listener(fleet) as stream:
        with fleet.deploying(DRAIN, "true", fleet.releases.a, settings=hurry) as run:
            outcome = run.exits(1)
        clients.saw_nothing()
    assert outcome["result"] == "done"
    assert 0 < outcome["cut"] <= outcome["failed"], "a cut answer is a failed one"
    assert 0 < stream.cuts <= len(outcome["steps"])
    fleet.is_whole(fleet.releases.a)


@contextmanager
def long_requests(fleet: Rolling) -> Iterator[Background]:
    """Clients of requests that take LONG_SECONDS, three a second."""
    page = f"/slow?seconds={LONG_SECONDS}"
    with Background(
        *("--url", fleet.url, "--rate", "3", "--page", page, "--mix", "keep-alive=1,close=1")
    ) as long:
        yield long


class Listener:
    """A client of an answer that never ends, which asks again when it is cut, and counts that."""

    def __init__(self, fleet: Rolling, path: str = "/events") -> None:
        self._address = fleet.url.removeprefix("http://")
        self._path = path
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.begun = 0
        self.cuts = 0

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.begun, 10, "the stream has begun")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(10)

    def _listen(self) -> None:
        while not self._stopped.is_set():
            connection = http.client.HTTPConnection(self._address, timeout=5)
            with closing(connection), suppress(OSError, http.client.HTTPException):
                connection.request("GET", self._path)
                answer = connection.getresponse()
                if answer.status == 200:
                    self._follow(answer)
            self._stopped.wait(0.1)

    def _follow(self, answer: http.client.HTTPResponse) -> None:
        """Read until the answer is cut, or nobody wants more of it."""
        self.begun += 1
        try:
            while answer.readline():
                if self._stopped.is_set():
                    return
        finally:
            self.cuts += not self._stopped.is_set()

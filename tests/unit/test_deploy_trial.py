"""A release proves itself on real HAProxies: soaks, shares, sessions that do not end, restarts."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

from deploy_fleet import LIMITS, Fleet, fleet, sticky, traffic, until

from flotilla.deploy.journal import read

__all__ = ["fleet", "sticky"]  # fixtures, which pytest finds by name

SOAKED = replace(LIMITS, soak=1.5)


def test_a_release_that_errs_once_it_serves_is_seen_by_the_canary_only(fleet: Fleet) -> None:
    for machine in fleet.machines.values():
        machine.erring["2"] = 1.5
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2", replace(SOAKED, soak=4))
        seen = clients.stop()
    assert outcome.result == "rolled back"
    assert "requests, the other hosts 0 of" in outcome.reason
    assert sum("switch 2" in machine.calls for machine in fleet.machines.values()) == 1
    assert fleet.versions == ["1", "1", "1"]
    assert outcome.seconds <= 30
    erred = outcome.soak["app-1"]["errors"]
    # From the first error to the drain a canary with a third of 80 requests/s has some 20.
    assert 0 < erred <= 40
    assert seen["failed"] <= 40, "none after it was drained"
    assert fleet.everything_up()


def test_a_release_that_is_slow_to_answer_is_taken_back(fleet: Fleet) -> None:
    """The slower it is the less it is given: how soon there are answers enough is chance."""
    for machine in fleet.machines.values():
        machine.slow["2"] = 0.6
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2", replace(SOAKED, soak=9))
        seen = clients.stop()
    assert outcome.result == "rolled back"
    assert " answers in " in outcome.reason
    assert seen["failed"] == 0
    assert fleet.versions == ["1", "1", "1"]


def test_a_canary_at_a_tenth_is_given_a_tenth_of_the_requests(fleet: Fleet) -> None:
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2", replace(SOAKED, soak=4, shares=(10, 100)))
        seen = clients.stop()
    assert outcome.result == "done"
    assert seen["failed"] == 0
    assert "soak at 10%" in outcome.steps["app-1"]
    assert "soak at 10%" not in outcome.steps["app-2"]
    shares = fleet.world.balancers.shares()
    assert {share for lb in shares.values() for share in lb.values()} == {100.0}


def test_the_share_is_what_clients_meet(fleet: Fleet) -> None:
    fleet.world.balancers.order("app-1", "weight 10%")
    before = fleet.world.balancers.samples()["lb-1"]
    with traffic(fleet) as clients:
        until(lambda: fleet.world.balancers.counters()["lb-1"].requests > 300, 20)
        clients.stop()
    after = fleet.world.balancers.samples()["lb-1"]
    asked = {name: after[name].requests - before[name].requests for name in after}
    assert 0 < asked["app-1"] / sum(asked.values()) < 0.12, asked  # 10 of 210


def test_requests_that_do_not_end_are_cut_off_and_counted_once(fleet: Fleet) -> None:
    port = int(fleet.url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for connection in held:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
    until(lambda: sum(v.sessions for h in fleet.hosts() for v in h.views.values()) == 3)
    outcome = fleet.deploy("2", replace(LIMITS, drain=1, drain_overrun="cut"))
    for connection in held:
        connection.close()
    assert outcome.result == "done"
    assert outcome.cut == 3
    assert outcome.failed == 3, "each of them once"
    assert fleet.versions == ["2", "2", "2"]


def test_a_load_balancer_that_is_started_again_in_mid_deploy_is_told_again(fleet: Fleet) -> None:
    """The passive one, while a host is away: it would send it requests after a fail-over."""
    machine = fleet.machines["app-2"]
    machine.boot_seconds = 1.2
    begun = threading.Event()
    call = machine.call

    def called(*words: str) -> object:
        if words[0] == "wait" and not begun.is_set():
            begun.set()
            fleet.start_again("lb-2")
        return call(*words)

    machine.call = called  # type: ignore[method-assign,assignment]
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "done"
    assert any("lb-2 forgot that app-2 is out" in note for note in outcome.notes)
    assert seen["failed"] == 0
    assert fleet.everything_up()


def test_the_journal_says_which_hosts_were_proved(fleet: Fleet) -> None:
    fleet.deploy("2")
    proved = [line["host"] for line in read(fleet.journal.path) if line["event"] == "proved"]
    assert sorted(proved) == ["app-1", "app-2", "app-3"]

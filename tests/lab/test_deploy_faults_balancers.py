"""Load balancers that are reloaded, restarted, lost or changed under a deploy."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
from guests import needs_lab, until
from rolling import Rolling, on_host, strike, struck
from typed import fab

from flotilla.snapshot import Host

pytestmark = [needs_lab, pytest.mark.drill]

RELOAD = "systemctl reload haproxy"
RELOADS = 5  # of each load balancer
IDLE_CLIENTS = 20
# A socket that hangs is given up after 5 s, and whoever asks has other things to do before that.
TOLD_SECONDS = 20
# The Elastic IP follows the VRRP master; without one nobody is answered.
MOVE_SECONDS = 15


def test_reloads_in_the_middle_of_a_deploy_bring_nobody_back_too_early(fleet: Rolling) -> None:
    """Of both load balancers, for every host: in maintenance, and just given back."""
    moment = r"after order \S+ state (maint|ready)"
    with (
        fleet.clients() as clients,
        fleet.deploying(moment, on_host(RELOAD, "lb"), every=True) as run,
    ):
        outcome = run.exits(0)
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"]) == ("done", 0)
    fleet.is_whole(fleet.other)


def test_reloads_cut_no_idle_client(fleet: Rolling) -> None:
    with fleet.clients() as clients, IdleClients(fleet) as idle:
        for _ in range(RELOADS):
            fab("fleet.run", "--on", "lb", "--sudo", RELOAD)
        clients.saw_nothing()
    assert idle.served >= IDLE_CLIENTS * RELOADS
    assert not idle.failures
    fleet.is_whole(fleet.version)


def test_a_reload_with_a_bad_configuration_is_refused_and_the_old_one_serves_on(
    fleet: Rolling,
) -> None:
    config = "/etc/haproxy/haproxy.cfg"
    spoil = f"cp -p {config} {config}.before && echo nonsense >> {config} && {RELOAD}"
    with fleet.clients() as clients:
        fab("fleet.run", "--on", "lb", "--sudo", spoil, code=2)
        fab("fleet.run", "--on", "lb", "--sudo", f"mv {config}.before {config} && {RELOAD}")
        clients.saw_nothing()
    fleet.is_whole(fleet.version)


def test_a_restart_of_the_passive_load_balancer_is_noticed_and_its_states_given_again(
    fleet: Rolling,
) -> None:
    """A restart forgets who is in maintenance: the host being switched is UP there again."""
    passive = fleet.balancer(active=False)
    with (
        fleet.clients() as clients,
        fleet.deploying(
            r"after order \S+ state maint",
            on_host("systemctl restart haproxy", passive.name),
        ) as run,
    ):
        outcome = run.exits(0)
        clients.saw_nothing()
    assert (outcome["result"], outcome["failed"]) == ("done", 0)
    fleet.is_whole(fleet.other)


def test_a_restart_of_the_active_load_balancer_costs_its_connections_and_nothing_else(
    fleet: Rolling,
) -> None:
    """What was open there is cut; nobody is sent to the host that is being switched."""
    active = fleet.balancer(active=True)
    with (
        fleet.clients() as clients,
        fleet.deploying(
            r"after order \S+ state maint", on_host("systemctl restart haproxy", active.name)
        ) as run,
    ):
        _, outcome, said = run.ends()
        seen = clients.stop()
    assert outcome["result"] == "done", said
    assert not answered_wrongly(seen), "an answer 5xx is a host that was not ready"
    assert seen["gap_seconds"] <= MOVE_SECONDS
    fleet.is_whole(fleet.other)


def test_the_passive_load_balancer_has_the_same_states_when_it_becomes_the_active_one(
    fleet: Rolling,
) -> None:
    """What clients lose is the move of the address, and nothing to a host out of rotation."""
    active = fleet.balancer(active=True)
    try:
        with (
            fleet.clients() as clients,
            fleet.deploying(
                r"after order \S+ state maint",
                on_host("systemctl stop keepalived", active.name),
            ) as run,
        ):
            _, outcome, said = run.ends()
            until(
                lambda: fleet.balancer(active=True).name != active.name, 30, "the address has moved"
            )
            seen = clients.stop()
    finally:
        fab("fleet.run", "--on", active.name, "--sudo", "systemctl start keepalived")
    assert outcome["result"] == "done", said
    assert not answered_wrongly(seen), "an answer 5xx is a host that was not ready, not the move"
    assert seen["gap_seconds"] <= MOVE_SECONDS
    fleet.is_whole(fleet.other)


def test_a_load_balancer_that_hangs_stops_the_deploy_before_it_begins(fleet: Rolling) -> None:
    passive = fleet.balancer(active=False)
    with fleet.clients() as clients:
        with struck(passive.instance_id, "freeze-process", unit="haproxy"):
            begun = time.monotonic()
            told = fleet.deploy(code=3)
            took = time.monotonic() - begun
        clients.saw_nothing()
    assert passive.name in told["error"]["what"]
    assert took <= TOLD_SECONDS
    fleet.is_whole(fleet.version)


def test_a_load_balancer_that_hangs_in_the_middle_stops_the_deploy_before_an_application_is_stopped(
    fleet: Rolling,
) -> None:
    passive = fleet.balancer(active=False)
    with fleet.clients() as clients:
        with fleet.deploying(
            r"before order \S+ state drain",
            strike(passive.instance_id, "freeze-process", unit="haproxy"),
        ) as run:
            outcome = run.exits(2)
        assert outcome["result"] in {"rolled back", "stopped"}
        assert fleet.running() == {fleet.version}
        fleet.heal()
        until(fleet.can_be_seen, 60, "the load balancer answers again")
        fab("deploy.run", "--version", fleet.version, "--adopt", "--yes")
        clients.saw_nothing()
    fleet.is_whole(fleet.version)


def test_a_socket_that_may_not_change_anything_stops_the_deploy_before_it_begins(
    fleet: Rolling,
) -> None:
    passive = fleet.balancer(active=False)
    with (
        fleet.clients() as clients,
        configured(passive, r"/stats socket/ s/level admin/level operator/"),
    ):
        told = fleet.deploy(code=3)
        clients.saw_nothing()
    assert passive.name in told["error"]["what"]
    assert "'operator'" in told["error"]["what"]
    fleet.is_whole(fleet.version)


def answered_wrongly(seen: dict[str, Any]) -> dict[str, int]:
    """Failures that are answers: a connection that breaks is not one."""
    return {why: n for why, n in seen["failures"].items() if "status" in why}


@contextmanager
def configured(balancer: Host, change: str) -> Iterator[None]:
    """A load balancer with another configuration (a sed expression), and its own again after."""
    config = "/etc/haproxy/haproxy.cfg"
    fab(
        "fleet.run",
        "--on",
        balancer.name,
        "--sudo",
        f"sed -i.before '{change}' {config} && {RELOAD}",
    )
    try:
        yield
    finally:
        fab(
            "fleet.run", "--on", balancer.name, "--sudo", f"mv {config}.before {config} && {RELOAD}"
        )


class IdleClients:
    """Clients that keep a connection and use it once a second. None of them tries again."""

    def __init__(self, fleet: Rolling) -> None:
        self._address = fleet.url.removeprefix("http://")
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=[number / IDLE_CLIENTS], daemon=True)
            for number in range(IDLE_CLIENTS)
        ]
        self.served = 0
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(15)

    def _ask(self, offset: float) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        self._stopped.wait(offset)
        while not self._stopped.is_set():
            try:
                connection.request("GET", "/healthz")
                answer = connection.getresponse()
                answer.read()
                problem = "" if answer.status == 200 else f"status {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                problem = type(error).__name__
                connection.close()
            with self._lock:
                self.served += not problem
                self.failures.update([problem] if problem else [])
            self._stopped.wait(1)

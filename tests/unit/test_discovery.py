"""The discovery service on a real HAProxy of this machine: what clients and its files get."""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from balancers import PORT, Edge, Web, edge, until
from ports import WORKER, free_port

from flotilla.discovery.balancer import Balancer
from flotilla.discovery.service import Service
from flotilla.rules.discovery import Host, Limits

# Tests of this file run beside each other: each worker of pytest-xdist has its own addresses.
NET = f"127.0.{7 + WORKER}"


class Answers:
    """EC2's part: the hosts of the moment, or what goes wrong."""

    def __init__(self) -> None:
        self.now: list[Host] = []
        self.error: Exception | None = None
        self.asked = 0
        self.ended: list[str] = []

    def hosts(self) -> list[Host]:
        self.asked += 1
        if self.error:
            raise self.error
        return list(self.now)

    def let_go(self, host: Host) -> bool:
        self.ended.append(host.name)
        return True


class Follower:
    """A service that is turned by the test, an answer of EC2 each time."""

    def __init__(self, edge: Edge, answers: Answers) -> None:
        self.answers, self.edge = answers, edge
        self.service = self.again()

    def again(self) -> Service:
        """A service as after a kill: it knows what is on disk and nothing else."""
        balancer = Balancer(self.edge.runtime, self.edge.places, port=PORT, clock=time.monotonic)
        self.service = Service(self.answers, balancer, self.edge.folder, every=0.0, limits=Limits())
        return self.service

    def rounds(self, count: int = 1) -> None:
        asked = self.answers.asked + count
        while self.answers.asked < asked:
            self.service.turn()
            time.sleep(0.01)
        time.sleep(0.02)
        self.service.turn()

    def until_up(self, *names: str) -> None:
        def serving() -> bool:
            self.rounds()
            return [n for n, s in self.edge.statuses().items() if s == "UP"] == list(names)

        until(serving)


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Edge]:
    with edge(tmp_path, listen=free_port()) as made:
        yield made


@pytest.fixture
def follower(balancer: Edge) -> Follower:
    return Follower(balancer, Answers())


@pytest.fixture
def webs() -> Iterator[dict[str, Web]]:
    made = {f"app-{number}": Web(f"{NET}.{number}") for number in (1, 2, 3, 4)}
    yield made
    for web in made.values():
        web.close()


def hosts(*numbers: int, **changed: str) -> list[Host]:
    return [
        Host(f"app-{number}", f"{NET}.{number}", instance_id=f"i-{number}", **changed)
        for number in numbers
    ]


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Client(threading.Thread):
    """Asks as fast as it is answered, on new connections; counts."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.failed, self.served, self.over = url, 0, 0, False

    def run(self) -> None:
        while not self.over:
            try:
                good = status_of(self.url) == 200
            except OSError:
                good = False
            self.served += good
            self.failed += not good

    def stop(self) -> tuple[int, int]:
        self.over = True
        self.join()
        return self.served, self.failed


def test_a_host_gets_no_request_before_fresh_checks_have_passed(follower, webs) -> None:
    follower.answers.now = hosts(1)
    follower.until_up("app-1")
    webs["app-2"].fit = False
    client = Client(follower.edge.url)
    client.start()
    follower.answers.now = hosts(1, 2)
    follower.rounds(20)
    assert follower.edge.statuses()["app-2"].startswith("DOWN")
    assert webs["app-2"].served == 0
    webs["app-2"].fit = True
    follower.until_up("app-1", "app-2")
    until(lambda: webs["app-2"].served)
    served, failed = client.stop()
    assert failed == 0
    assert served > 10


def test_hosts_come_and_go_and_no_request_fails(follower, webs) -> None:
    follower.answers.now = hosts(1, 2)
    follower.until_up("app-1", "app-2")
    client = Client(follower.edge.url)
    client.start()
    follower.answers.now = hosts(1, 2, 3, 4)
    follower.until_up("app-1", "app-2", "app-3", "app-4")
    follower.answers.now = [*hosts(1, 4), *hosts(2, 3, lifecycle="Terminating:Wait")]
    follower.until_up("app-1", "app-4")
    gone = [Host(f"app-{n}", "", "terminated", instance_id=f"i-{n}") for n in (2, 3)]
    follower.answers.now = [*hosts(1, 4), *gone]
    until(lambda: follower.rounds() or set(follower.edge.statuses()) == {"app-1", "app-4"}, 15)
    served, failed = client.stop()
    assert failed == 0
    assert served > 10
    assert follower.edge.configured() == {"app-1": f"{NET}.1", "app-4": f"{NET}.4"}


def test_a_reload_gives_the_same_set_and_the_same_states(follower, webs) -> None:
    follower.answers.now = hosts(1, 2, 3)
    follower.until_up("app-1", "app-2", "app-3")
    follower.edge.runtime.set_state("app-3", "state maint")
    webs["app-4"].fit = False
    follower.answers.now = hosts(1, 2, 3, 4)
    follower.rounds(3)
    client = Client(follower.edge.url)
    client.start()
    for _ in range(3):
        assert follower.edge.script().returncode == 0
        statuses = follower.edge.statuses()
        assert list(statuses) == ["app-1", "app-2", "app-3", "app-4"]
        assert (statuses["app-1"], statuses["app-3"]) == ("UP", "MAINT")
        assert statuses["app-4"].startswith("DOWN")
        follower.rounds(2)
    assert client.stop()[1] == 0
    assert webs["app-4"].served == 0


def test_clients_that_idle_on_kept_connections_survive_ten_reloads(follower, webs) -> None:
    """http.client opens a new connection only after an answer that said so."""
    follower.answers.now = hosts(1, 2)
    follower.until_up("app-1", "app-2")
    address = follower.edge.url.removeprefix("http://").strip("/")
    clients = [http.client.HTTPConnection(address, timeout=30) for _ in range(20)]
    for reloads in range(11):
        for client in clients:
            client.request("GET", "/")
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200
        if reloads < 10:
            assert follower.edge.script().returncode == 0
            follower.rounds(1)
    assert sum(web.served for web in webs.values()) == 11 * len(clients)


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_restart_gives_the_same_set_and_the_same_states(follower, webs, way: str) -> None:
    follower.answers.now = hosts(1, 2, 3)
    follower.until_up("app-1", "app-2", "app-3")
    follower.edge.runtime.set_state("app-2", "state drain")
    follower.edge.runtime.set_state("app-3", "state maint")
    follower.rounds()
    getattr(follower.edge, way)()
    assert follower.edge.start() == ""
    assert follower.edge.statuses() == {"app-1": "UP", "app-2": "DRAIN", "app-3": "MAINT"}
    assert not (follower.edge.folder / "state").exists()


def test_states_of_long_ago_are_dropped_by_name_and_every_server_waits_for_its_checks(
    follower, webs
) -> None:
    follower.answers.now = hosts(1, 2)
    follower.until_up("app-1", "app-2")
    follower.edge.runtime.set_state("app-2", "state maint")
    webs["app-1"].fit = False
    follower.edge.stop()
    os.utime(follower.edge.places.states, (time.time() - 3600,) * 2)
    said = follower.edge.start()
    assert "app/app-2" in said
    assert follower.edge.statuses()["app-1"].startswith("DOWN")
    until(lambda: follower.edge.statuses()["app-2"] == "UP")
    assert webs["app-1"].served == 0


def test_a_server_whose_name_another_host_has_now_does_not_inherit_its_maintenance(
    follower, webs
) -> None:
    follower.answers.now = hosts(1, 2)
    follower.until_up("app-1", "app-2")
    follower.edge.runtime.set_state("app-2", "state maint")
    follower.rounds()
    follower.edge.stop()
    text = follower.edge.places.config.read_text()
    follower.edge.places.config.write_text(text.replace(f"{NET}.2", f"{NET}.3"))
    follower.edge.start()
    until(lambda: follower.edge.statuses() == {"app-1": "UP", "app-2": "UP"})


@pytest.mark.parametrize("answer", ["error", "empty", "half"])
def test_a_bad_answer_removes_nothing(follower, webs, answer: str) -> None:
    follower.answers.now = hosts(1, 2, 3, 4)
    follower.until_up("app-1", "app-2", "app-3", "app-4")
    follower.answers.error = TimeoutError("no answer") if answer == "error" else None
    follower.answers.now = hosts(1, 2) if answer == "half" else []
    follower.rounds(10)
    assert set(follower.edge.statuses().values()) == {"UP"}
    assert len(follower.edge.configured()) == 4


def test_a_killed_service_goes_on_where_it_was(follower, webs) -> None:
    follower.answers.now = hosts(1, 2)
    follower.until_up("app-1", "app-2")
    follower.answers.now = [*hosts(1), *hosts(2, lifecycle="Standby")]
    follower.until_up("app-1")
    follower.again()
    follower.rounds(3)
    assert follower.edge.statuses()["app-2"] == "DRAIN"
    follower.again()
    follower.answers.now = hosts(1, 2)
    follower.until_up("app-1", "app-2")


def test_a_server_added_just_before_a_kill_is_written_by_the_next_service(follower, webs) -> None:
    follower.answers.now = hosts(1)
    follower.until_up("app-1")
    follower.edge.runtime.add({"app-2": f"{NET}.2:{PORT} check inter 100ms rise 2"})
    follower.answers.now = hosts(1, 2)
    follower.again()
    follower.until_up("app-1", "app-2")
    assert set(follower.edge.configured()) == {"app-1", "app-2"}


def test_a_configuration_written_by_others_gets_its_servers_back(follower, webs) -> None:
    follower.answers.now = hosts(1, 2)
    follower.until_up("app-1", "app-2")
    config = follower.edge.places.config
    whole = config.read_text()
    config.write_text(whole.replace(f"    server app-2 {NET}.2:{PORT}\n", ""))
    follower.rounds()
    assert config.read_text() == whole


def test_a_configuration_that_haproxy_would_refuse_is_not_installed(follower, webs) -> None:
    config = follower.edge.places.config
    broken = config.read_text().replace("balance random(2)", "balance nonsense")
    config.write_text(broken)
    follower.answers.now = hosts(1)
    follower.rounds(2)
    assert config.read_text() == broken
    assert "haproxy exited 1" in (follower.edge.folder / "report.json").read_text()
    until(lambda: follower.edge.statuses() == {"app-1": "UP"})


def test_a_host_is_let_go_when_it_is_drained_on_every_load_balancer(tmp_path, webs) -> None:
    """The other one is asked on its statistics page, and may have requests for it longer."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    port, page = free_port(), free_port()
    statistics = f"\nfrontend stats\n    bind 127.0.0.1:{page}\n    stats enable\n    stats uri /\n"
    peer = f"\nbackend lb_peers\n    server lb-2 127.0.0.1:{page}\n"
    with (
        edge(tmp_path / "a", listen=port, end=peer) as one,
        edge(tmp_path / "b", listen=free_port(), end=statistics) as other,
    ):
        first, second = Follower(one, Answers()), Follower(other, Answers())
        for follower in (first, second):
            follower.answers.now = hosts(1, 2)
            follower.until_up("app-1", "app-2")
            follower.answers.now = [*hosts(1), *hosts(2, lifecycle="Terminating:Wait")]
        first.rounds(4)
        assert one.statuses()["app-2"] == "DRAIN"
        assert first.answers.ended == []
        second.rounds(2)
        first.rounds(1)
        assert first.answers.ended[0] == "app-2"


def cookies(url: str) -> set[str]:
    """The servers that new clients are told to stay with."""
    found = set()
    for _ in range(20):
        with urllib.request.urlopen(url, timeout=5) as answer:
            found.add(answer.headers["Set-Cookie"].partition(";")[0].partition("=")[2])
    return found


def test_sticky_servers_have_their_cookies_and_wait_for_their_checks_too(tmp_path, webs) -> None:
    """By command, or by a reload where HAProxy takes no cookie by command."""
    cookie = "    cookie FLOTILLA insert indirect nocache httponly\n"
    with edge(tmp_path, listen=free_port(), more=cookie) as made:
        follower = Follower(made, Answers())
        webs["app-2"].fit = False
        follower.answers.now = hosts(1, 2)
        follower.until_up("app-1")
        assert made.statuses()["app-2"].startswith("DOWN")
        assert cookies(made.url) == {"app-1"}
        webs["app-2"].fit = True
        follower.until_up("app-1", "app-2")
        assert cookies(made.url) == {"app-1", "app-2"}
        assert webs["app-1"].served
        follower.answers.now = [*hosts(1), *hosts(2, lifecycle="Terminating:Wait")]
        follower.rounds(2)
        assert made.statuses()["app-2"] == "MAINT"

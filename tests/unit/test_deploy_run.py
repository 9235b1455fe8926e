"""Deploys over two real HAProxies and three real HTTP servers, judged by clients.

What stands in for a host is a server in this process that is stopped, started late and made to
misbehave; everything from the plan to the load balancers' sockets is the real thing.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flotilla.aws.artifacts import Release
from flotilla.deploy import Balancers, Journal, Limits, Outcome, Roll, World, run
from flotilla.deploy.journal import read
from flotilla.errors import HostFailed
from flotilla.hosts.haproxy import Runtime, local
from flotilla.rules import deploy as rules
from flotilla.traffic import Background

CONFIG = """
global
    stats socket {folder}/admin.sock mode 600 level admin
defaults
    mode http
    option redispatch 1
    option idle-close-on-response
    retries 3
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout queue 5s
frontend edge
    bind 127.0.0.1:{port}
    default_backend app
backend app
    balance leastconn
    option httpchk GET /healthz
    retry-on conn-failure empty-response
    http-request disable-l7-retry unless METH_GET
    {cookie}
    default-server check inter 100ms fall 2 rise 2
"""
LIMITS = Limits(drain=3, boot=2, gate=5, answer=2, poll=0.05)


class HostServer(ThreadingHTTPServer):
    """One host's application: its version, and whether it is broken."""

    request_queue_size = 128
    version = ""
    broken = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HostServer

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            time.sleep(1)
        status = 500 if self.server.broken else 200
        body = self.server.version.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Machine:
    """What the release tool on a host would do, on a port of loopback."""

    name: str
    port: int
    boot_seconds: float = 0.3
    version: str | None = None
    staged: set[str] = field(default_factory=set)
    fails: dict[str, str] = field(default_factory=dict)  # verb + version -> what the tool says
    broken: set[str] = field(default_factory=set)  # versions that never get healthy
    lies: set[str] = field(default_factory=set)  # versions that name another one
    calls: list[str] = field(default_factory=list)
    server: HostServer | None = None

    def start(self) -> None:
        version = self.version or ""
        time.sleep(self.boot_seconds)
        self.server = HostServer(("127.0.0.1", self.port), Handler)
        self.server.version = "another" if version in self.lies else version
        self.server.broken = version in self.broken
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def call(self, *words: str) -> dict[str, Any]:
        verb, version = words[0], words[1] if len(words) > 1 else ""
        self.calls.append(f"{verb} {version}".strip())
        if said := self.fails.get(f"{verb} {version}".strip()):
            raise HostFailed(f"{self.name}: {said}")
        if verb == "stage":
            self.staged.add(version)
        elif verb in {"switch", "retire"}:
            assert verb == "retire" or version in self.staged
            self.stop()
            self.version = version or None
            if self.version:
                threading.Thread(target=self.start).start()
        elif verb == "wait":
            self.wait(version)
        return {"current": self.version, "active": self.server is not None, "stale": False}

    def wait(self, version: str) -> None:
        deadline = time.monotonic() + LIMITS.boot
        while True:
            server = self.server
            if server and not server.broken and server.version == version:
                return
            if time.monotonic() > deadline:
                raise HostFailed(f"{self.name}: not ready with version {version}")
            time.sleep(0.02)


@dataclass
class Fleet:
    """Machines, load balancers, and what a deploy needs of them."""

    machines: dict[str, Machine]
    world: World
    url: str
    journal: Journal

    def call(self, host: str, *words: str, seconds: float) -> dict[str, Any]:  # noqa: ARG002
        return self.machines[host].call(*words)

    def hosts(self) -> list[rules.Host]:
        seen = self.world.balancers.servers()
        return [
            rules.Host(
                name=name,
                zone=f"zone-{name[-1]}",
                version=machine.version,
                active=machine.server is not None,
                stale=False,
                views={lb: servers[name] for lb, servers in seen.items()},
            )
            for name, machine in self.machines.items()
        ]

    def deploy(self, version: str, **options: Any) -> Outcome:
        plan = rules.plan(self.hosts(), version, rules.Options())
        assert isinstance(plan, rules.Plan), plan
        return run(
            self.world,
            plan,
            Release(version, "0" * 64, 1, datetime.now(UTC), "test"),
            self.journal,
            roll=lambda said: Roll(self.world, LIMITS, said=said),
            said=lambda _: None,
            **options,
        )

    @property
    def versions(self) -> list[str | None]:
        return [machine.version for machine in self.machines.values()]

    def everything_up(self) -> bool:
        seen = self.world.balancers.servers()
        return all(s.status == "UP" for servers in seen.values() for s in servers.values())


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture
def sticky() -> bool:
    return False


@pytest.fixture
def fleet(tmp_path: Path, sticky: bool) -> Iterator[Fleet]:
    """Three hosts on version 1 behind two load balancers."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here")
    ports = free_ports(5)
    machines = {f"app-{n}": Machine(f"app-{n}", ports[n - 1]) for n in (1, 2, 3)}
    for machine in machines.values():
        machine.version, machine.staged, machine.boot_seconds = "1", {"1"}, 0
        machine.start()
        machine.boot_seconds = 0.3
    processes, runtimes = [], {}
    for name, port in zip(("lb-1", "lb-2"), ports[3:], strict=True):
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            f"    server {m.name} 127.0.0.1:{m.port}{f' cookie {m.name}' if sticky else ''}"
            for m in machines.values()
        ]
        cookie = "cookie SERVER insert indirect nocache" if sticky else ""
        text = CONFIG.format(folder=folder, port=port, cookie=cookie) + "\n".join(lines) + "\n"
        (folder / "haproxy.cfg").write_text(text)
        processes.append(subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]))
        runtimes[name] = Runtime(name, local(folder / "admin.sock"))
        until((folder / "admin.sock").exists)
    made = Fleet(
        machines,
        World(Balancers(runtimes), None),  # type: ignore[arg-type]  # set below
        f"http://127.0.0.1:{ports[3]}",
        Journal(tmp_path / "journal.jsonl", lambda: datetime.now(UTC)),
    )
    made.journal.path.touch()
    made.world = World(made.world.balancers, made)
    until(made.everything_up)
    yield made
    for process in processes:
        process.terminate()
        process.wait(10)
    for machine in machines.values():
        machine.stop()


def traffic(fleet: Fleet) -> Background:
    return Background("--url", fleet.url, "--rate", "80")


def test_a_deploy_under_mixed_traffic_fails_no_request(fleet: Fleet) -> None:
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "done"
    assert fleet.versions == ["2", "2", "2"]
    assert (seen["failed"], outcome.failed) == (0, 0)
    assert seen["served"] > 100
    assert outcome.served > 0
    assert fleet.everything_up()
    assert outcome.line.startswith(f"served {outcome.served}, failed 0, retried ")


@pytest.mark.parametrize("sticky", [True])
def test_clients_kept_by_a_cookie_are_moved_and_lose_nothing(fleet: Fleet) -> None:
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "done"
    assert seen["failed"] == 0
    assert seen["kinds"]["sticky"]["served"] > 10


@pytest.mark.parametrize("fault", ["broken", "lies"])
def test_a_bad_release_is_seen_by_the_canary_only_and_taken_back(fleet: Fleet, fault: str) -> None:
    for machine in fleet.machines.values():
        getattr(machine, fault).add("2")
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "rolled back"
    assert fleet.versions == ["1", "1", "1"]
    assert seen["failed"] == 0
    assert sum("switch 2" in machine.calls for machine in fleet.machines.values()) == 1
    assert fleet.everything_up()
    with pytest.raises(HostFailed, match="Every host runs again what it ran before"):
        outcome.raise_failure()


def test_a_failure_on_the_last_host_takes_the_finished_ones_back_too(fleet: Fleet) -> None:
    last = fleet.machines["app-3"]
    last.broken.add("2")
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "rolled back"
    assert fleet.versions == ["1", "1", "1"]
    assert seen["failed"] == 0
    assert fleet.everything_up()


def test_a_second_failure_stops_and_names_the_hosts(fleet: Fleet) -> None:
    fleet.machines["app-2"].broken.add("2")
    fleet.machines["app-2"].fails["switch 1"] = "the disk is gone"
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "stopped"
    assert "the disk is gone" in outcome.left["app-2"]
    assert outcome.left["app-1"] == "runs 2"
    assert seen["failed"] == 0, "hosts that are broken must not be in rotation"
    with pytest.raises(HostFailed, match=r"app-2: .*the disk is gone.*--adopt"):
        outcome.raise_failure()


def test_staging_that_fails_on_one_host_takes_none_out_of_rotation(fleet: Fleet) -> None:
    fleet.machines["app-3"].fails["stage 2"] = "checksum differs"
    with pytest.raises(HostFailed, match="No host left rotation"):
        fleet.deploy("2")
    assert fleet.versions == ["1", "1", "1"]
    assert fleet.everything_up()
    assert not any("switch 2" in machine.calls for machine in fleet.machines.values())


def test_the_schema_is_migrated_once_and_before_any_host_is_switched(fleet: Fleet) -> None:
    fleet.deploy("2")
    calls = [call for machine in fleet.machines.values() for call in machine.calls]
    assert calls.count("migrate 2") == 1
    canary = next(m for m in fleet.machines.values() if "migrate 2" in m.calls)
    assert canary.calls.index("migrate 2") < canary.calls.index("switch 2")


def test_a_migration_that_fails_changes_no_host(fleet: Fleet) -> None:
    for machine in fleet.machines.values():
        machine.fails["migrate 2"] = "no such table"
    with pytest.raises(HostFailed, match="no such table"):
        fleet.deploy("2")
    assert fleet.everything_up()


def test_the_first_release_ever_is_deployed_to_empty_hosts(fleet: Fleet) -> None:
    for machine in fleet.machines.values():
        machine.call("retire")
    until(lambda: not any(host.is_serving for host in fleet.hosts()))
    outcome = fleet.deploy("2")
    assert outcome.result == "done"
    assert fleet.versions == ["2", "2", "2"]
    assert fleet.everything_up()


def test_a_first_release_that_is_bad_leaves_the_hosts_empty_and_out(fleet: Fleet) -> None:
    for machine in fleet.machines.values():
        machine.call("retire")
        machine.broken.add("2")
    until(lambda: not any(host.is_serving for host in fleet.hosts()))
    outcome = fleet.deploy("2")
    assert outcome.result == "rolled back"
    assert fleet.versions == [None, None, None]
    until(lambda: not any(host.is_serving or host.is_out for host in fleet.hosts()))


def test_a_host_that_cannot_be_emptied_goes_back_into_rotation(fleet: Fleet) -> None:
    """A client that holds a request open for longer than the drain deadline."""
    port = int(fleet.url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for connection in held:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
    until(lambda: any(v.sessions for h in fleet.hosts() for v in h.views.values()))
    outcome = fleet.deploy("2")
    for connection in held:
        connection.close()
    assert outcome.result == "rolled back"
    assert "in flight" in outcome.reason
    assert fleet.versions == ["1", "1", "1"]
    assert fleet.everything_up()


def test_a_host_lost_in_mid_deploy_stops_it_before_too_few_serve(fleet: Fleet) -> None:
    lost = fleet.machines["app-3"]
    roll = Roll(fleet.world, LIMITS, said=lambda _: None)
    lost.stop()
    until(lambda: not fleet.hosts()[2].is_serving)
    assert roll.why_too_few(["app-1"], 2) == "besides app-1 only app-2 would serve, and 2 must"
    threading.Thread(target=lost.start).start()
    assert roll.why_too_few(["app-1"], 2) is None, "a host that comes back is waited for"


def test_an_interruption_between_batches_takes_everything_back(fleet: Fleet) -> None:
    def stopping() -> str:
        done = any(line["event"] == "proved" for line in read(fleet.journal.path))
        return "interrupted by the operator" if done else ""

    outcome = fleet.deploy("2", stopping=stopping)
    assert outcome.result == "rolled back"
    assert outcome.reason == "interrupted by the operator"
    assert fleet.versions == ["1", "1", "1"]


def test_the_journal_tells_every_step_and_how_it_ended(fleet: Fleet) -> None:
    outcome = fleet.deploy("2")
    lines = read(fleet.journal.path)
    assert [line["event"] for line in lines][:2] == ["stage", "migrate"]
    assert lines[-1]["event"] == "end"
    assert lines[-1]["served"] == outcome.served
    told = {(line["host"], line["step"]) for line in lines if line["event"] == "step"}
    assert ("app-1", "drain") in told
    assert ("app-3", "return") in told


def test_a_host_that_is_right_already_is_not_touched(fleet: Fleet) -> None:
    fleet.deploy("2")
    for machine in fleet.machines.values():
        machine.calls.clear()
    assert fleet.deploy("2").result == "nothing to do"
    assert not any(machine.calls for machine in fleet.machines.values())

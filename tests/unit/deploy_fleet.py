"""Hosts and load balancers for deploys: two real HAProxies and three real HTTP servers.

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
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from flotilla.aws.artifacts import Release
from flotilla.deploy import Balancers, Journal, Limits, Outcome, Roll, World, run
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
    # A check may take longer than its interval: this process is slow when the machine is busy.
    # Its connection may not: HAProxy gives that `inter`, which is long here for the same reason.
    timeout check 2s
frontend edge
    bind 127.0.0.1:{port}
    default_backend app
backend app
    balance random(2)
    option httpchk GET /healthz
    retry-on conn-failure empty-response
    http-request disable-l7-retry unless METH_GET
    {cookie}
    default-server check inter 500ms fastinter 100ms downinter 100ms fall 2 rise 2 weight 100
"""
LIMITS = Limits(drain=3, boot=2, gate=5, answer=2, poll=0.05)


class HostServer(ThreadingHTTPServer):
    """One host's application: its version, and whether it is broken."""

    request_queue_size = 128
    version = ""
    broken = False
    # Health checks go on passing: what only the soak sees.
    erring_from = float("inf")
    seconds = 0.0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HostServer

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            time.sleep(1)
        if self.path != "/healthz":
            time.sleep(self.server.seconds)
        erring = time.monotonic() > self.server.erring_from and self.path != "/healthz"
        status = 500 if self.server.broken or erring else 200
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
    erring: dict[str, float] = field(default_factory=dict)  # version -> seconds until it errs
    slow: dict[str, float] = field(default_factory=dict)  # version -> seconds for each answer
    calls: list[str] = field(default_factory=list)
    server: HostServer | None = None

    def start(self) -> None:
        version = self.version or ""
        time.sleep(self.boot_seconds)
        self.server = HostServer(("127.0.0.1", self.port), Handler)
        self.server.version = "another" if version in self.lies else version
        self.server.broken = version in self.broken
        self.server.seconds = self.slow.get(version, 0.0)
        self.server.erring_from = time.monotonic() + self.erring.get(version, float("inf"))
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
    processes: dict[str, list[Any]]  # by load balancer: its command line and its process

    def start_again(self, balancer: str) -> None:
        """`systemctl restart haproxy`: at once, without a word to anybody."""
        command, process = self.processes[balancer]
        process.kill()
        process.wait(10)
        self.processes[balancer][1] = subprocess.Popen(command)

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

    def deploy(self, version: str, limits: Limits = LIMITS, **options: Any) -> Outcome:
        plan = rules.plan(self.hosts(), version, rules.Options())
        assert isinstance(plan, rules.Plan), plan
        return run(
            self.world,
            plan,
            Release(version, "0" * 64, 1, datetime.now(UTC), "test"),
            self.journal,
            roll=lambda said: Roll(self.world, limits, said=said),
            said=lambda _: None,
            **options,
        )

    @property
    def versions(self) -> list[str | None]:
        return [machine.version for machine in self.machines.values()]

    def everything_up(self) -> bool:
        """Every server takes requests: "UP 1/2" does too."""
        seen = self.world.balancers.servers()
        return all(s.status.startswith("UP") for servers in seen.values() for s in servers.values())


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.05)


def takes(path: Path) -> bool:
    """Whether a socket takes connections: it is there a moment before it does."""
    with socket.socket(socket.AF_UNIX) as stream:
        return stream.connect_ex(str(path)) == 0


@pytest.fixture
def sticky() -> bool:
    return False


@pytest.fixture
def fleet(tmp_path: Path, sticky: bool) -> Iterator[Fleet]:
    """Three hosts on version 1 behind two load balancers."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here")
    ports = [free_port() for _ in range(5)]
    machines = {f"app-{n}": Machine(f"app-{n}", ports[n - 1]) for n in (1, 2, 3)}
    for machine in machines.values():
        machine.version, machine.staged, machine.boot_seconds = "1", {"1"}, 0
        machine.start()
        machine.boot_seconds = 0.3
    processes: dict[str, list[Any]] = {}
    runtimes = {}
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
        command = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
        processes[name] = [command, subprocess.Popen(command)]
        runtimes[name] = Runtime(name, local(folder / "admin.sock"))
        until(partial(takes, folder / "admin.sock"))
    made = Fleet(
        machines,
        World(Balancers(runtimes), None),  # type: ignore[arg-type]  # set below
        f"http://127.0.0.1:{ports[3]}",
        Journal(tmp_path / "journal.jsonl", lambda: datetime.now(UTC)),
        processes,
    )
    made.journal.path.touch()
    made.world = World(made.world.balancers, made)
    until(made.everything_up)
    yield made
    for _, process in processes.values():
        process.terminate()
        process.wait(10)
    for machine in machines.values():
        machine.stop()


def traffic(fleet: Fleet) -> Background:
    return Background("--url", fleet.url, "--rate", "80")

"""A fleet in memory with a clock of its own: HAProxy's socket as text, hosts, and an operator who
can be killed at any moment.

Everything of ours is the real thing. What HAProxy does here is what test_haproxy_socket.py and
test_deploy_run.py see the real one do: a server that leaves maintenance is taken for up with the
check result of before, `health down` needs two fresh passes, a drained server keeps its sessions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flotilla.aws.artifacts import Release
from flotilla.deploy import Balancers, Conduct, Journal, Limits, Outcome, Roll, World, run
from flotilla.deploy.resume import Recovery, look, settle
from flotilla.errors import HostFailed, Unreachable
from flotilla.hosts.haproxy import Runtime
from flotilla.rules import deploy as rules
from flotilla.rules import resume

CHECK_SECONDS = 0.3
STAT = "# pxname,svname,qcur,scur,status,weight,check_status,req_tot,econ,eresp,chkfail,chkdown"
ANSWERS = "hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,rtime,srv_abrt,wretr,wredis"
SERVER = "srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
STATE = f"# be_id be_name srv_id srv_name {SERVER}"


class Killed(BaseException):
    """SIGKILL: nothing of the operator runs any more."""


class Clock:
    """Time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            # Less than the last digit of a float would leave the clock where it is, for ever.
            self.now += max(seconds, 1e-6)


@dataclass
class Host:
    """What the release tool does, and whether the application answers."""

    name: str
    clock: Clock
    version: str | None = "1"
    ready_at: float = 0.0
    releases: dict[str, str] = field(default_factory=lambda: {"1": "0" * 64})
    broken: set[str] = field(default_factory=set)
    fails_after: dict[str, float] = field(default_factory=dict)  # version: good for so long
    silent: bool = False
    # What a killed operator left at work here, and when it will be over.
    busy_until: float = 0.0
    unfinished: tuple[str, ...] = ()

    @property
    def is_healthy(self) -> bool:
        return (
            self.version is not None
            and self.version not in self.broken
            and self.clock() >= self.ready_at
        )

    @property
    def answers_errors(self) -> bool:
        good = self.fails_after.get(self.version or "")
        return good is not None and self.clock() > self.ready_at + good

    def call(self, verb: str, version: str = "", *_: str) -> dict[str, Any]:
        if self.silent:
            raise Unreachable(f"{self.name}: no answer")
        if self.unfinished and self.clock() >= self.busy_until:
            last, self.unfinished = self.unfinished, ()
            self.call(*last)
        if verb not in {"status", "wait"} and self.unfinished:
            raise HostFailed(f"{self.name}: another app-release is at work on this host")
        if verb == "stage":
            self.releases[version] = "0" * 64
        elif verb in {"switch", "retire"}:
            self.version = version or None
            self.ready_at = self.clock() + 0.5
        elif verb == "wait":
            self._wait(version)
        return {
            "current": self.version,
            "active": self.version is not None,
            "stale": False,
            "releases": self.releases,
        }

    def _wait(self, version: str) -> None:
        self.clock.sleep(max(0.0, self.ready_at - self.clock()))
        if self.version != version or not self.is_healthy:
            self.clock.sleep(2)
            raise HostFailed(f"{self.name}: not ready with version {version}")


@dataclass
class Server:
    """A server of one load balancer."""

    host: Host
    admin: str = "ready"
    up: bool = True
    passes: int = 0
    checked_at: float = 0.0
    weight: int = 100
    sessions: int = 0
    answered: float = 0.0
    errors: float = 0.0
    downs: int = 0

    @property
    def serves(self) -> bool:
        return self.admin == "ready" and self.up and self.weight > 0

    @property
    def status(self) -> str:
        if self.admin == "maint":
            return "MAINT"
        if not self.up:
            return "DOWN 1/2" if self.passes else "DOWN"
        return "DRAIN" if self.admin == "drain" else "UP"


class Balancer:
    """One HAProxy; ``ask`` is its socket."""

    def __init__(self, name: str, hosts: dict[str, Host], clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.hosts = hosts
        self.silent = False
        self.wrong: list[str] = []
        self.started_again()

    def started_again(self) -> None:
        """As after `systemctl restart`: every server is up until it was checked."""
        now = self.clock()
        self.servers = {n: Server(h, checked_at=now) for n, h in self.hosts.items()}

    def ask(self, text: str) -> str:
        if self.silent:
            raise OSError("no answer")
        self._pass_time()
        said = [self._command(one.strip()) for one in text.split(";")]
        return "\n".join(said) + "\n"

    def _command(self, text: str) -> str:
        words = text.split()
        if words[:2] == ["set", "server"]:
            return self._set(words[2].partition("/")[2], *words[3:])
        if words[:2] == ["shutdown", "sessions"]:
            self.servers[words[3].partition("/")[2]].sessions = 0
            return ""
        if words[:2] == ["show", "stat"]:
            return self._stat()
        if words[:3] == ["show", "servers", "state"]:
            rows = [f"3 app {i} {n} 10.0.0.1 2 0 {s.weight} 100" for i, (n, s) in self._rows()]
            return "\n".join(["1", STATE, *rows])
        return "admin"

    def _set(self, name: str, what: str, value: str) -> str:
        server = self.servers[name]
        if what == "weight":
            server.weight = int(value.rstrip("%"))
        elif what == "health":
            server.up, server.passes = False, 0
        else:
            if server.admin == "maint" and value != "maint":
                # Taken for up, with the result of before, until the next check.
                server.up, server.passes, server.checked_at = True, 2, self.clock()
            server.admin = value
        self._watch(name)
        return ""

    def _pass_time(self) -> None:
        now = self.clock()
        for name, server in self.servers.items():
            while server.admin != "maint" and server.checked_at + CHECK_SECONDS <= now:
                server.checked_at += CHECK_SECONDS
                if server.serves:
                    server.answered += 3
                    server.errors += 3 * server.host.answers_errors
                self._check(server)
            if server.admin == "maint":
                server.checked_at = now
            self._watch(name)

    def _check(self, server: Server) -> None:
        if not server.host.is_healthy:
            server.downs += server.up
            server.up, server.passes = False, 0
        elif not server.up:
            server.passes += 1
            server.up = server.passes >= 2

    def _watch(self, name: str) -> None:
        server = self.servers[name]
        if server.serves and not server.host.is_healthy and server.host.version is not None:
            self.wrong.append(f"{self.name} sends requests to {name}, which cannot answer")

    def _rows(self) -> list[tuple[int, tuple[str, Server]]]:
        return list(enumerate(self.servers.items(), 1))

    def _stat(self) -> str:
        lines = [f"{STAT},{ANSWERS},"]
        for name, s in self.servers.items():
            good, bad = int(s.answered - s.errors), int(s.errors)
            figures = f"{int(s.answered)},0,0,0,{s.downs},0,{good},0,0,{bad},0,5,0,0,0"
            lines.append(f"app,{name},0,{s.sessions},{s.status},{s.weight},L7OK,{figures},")
        total = sum(int(s.answered) for s in self.servers.values())
        bad = sum(int(s.errors) for s in self.servers.values())
        lines.append(f"app,BACKEND,0,0,UP,1,,{total},0,0,0,0,0,0,0,0,{bad},0,0,0,0,0,")
        return "\n".join(lines) + "\n"


class Model:
    """The fleet, and an operator whose process ends at the ``dies_at``-th thing it does."""

    def __init__(self, folder: Path, hosts: int = 4) -> None:
        self.clock = Clock()
        self.hosts = {f"app-{n}": Host(f"app-{n}", self.clock) for n in range(1, hosts + 1)}
        self.balancers = {n: Balancer(n, self.hosts, self.clock) for n in ("lb-1", "lb-2")}
        self.zones = {name: f"zone-{number % 3}" for number, name in enumerate(self.hosts)}
        self.journal = Journal(folder / "1.jsonl", self._time)
        self.journal.path.touch()
        self.done_things: list[str] = []
        self.dies_at: int | None = None
        self.is_dead = False
        self.events: dict[str, Callable[[], None]] = {}
        self.limits = Limits(drain=3, boot=2, gate=8, answer=2, soak=1.5, shares=(10, 100))
        runtimes = {n: Runtime(n, self._operated(lb)) for n, lb in self.balancers.items()}
        self.world = World(Balancers(runtimes), self)
        write = self.journal.write

        def written(event: str, **fields: Any) -> None:
            self._does(f"write {event} {fields.get('host', '')} {fields.get('step', '')}".strip())
            write(event, **fields)

        self.journal.write = written  # type: ignore[method-assign]

    def call(self, host: str, *words: str, seconds: float) -> dict[str, Any]:  # noqa: ARG002
        """The release tool over SSH."""
        if words[0] in {"status", "wait"}:
            self._lives()
        else:
            try:
                self._does(f"call {host} {' '.join(words[:2])}")
            except Killed:
                # The host does not notice: what was begun there is carried out, and takes a while.
                if len(self.done_things) % 2:
                    self.hosts[host].unfinished = words
                    self.hosts[host].busy_until = self.clock() + 2
                raise
        return self.hosts[host].call(*words)

    def deploy(self, version: str = "2", floor: int = 50, **options: Any) -> Outcome:
        """As `fab deploy.run`. Raises Killed."""
        plan = rules.plan(self._seen(), version, rules.Options(floor_percent=floor))
        assert isinstance(plan, rules.Plan), plan
        self.journal.write("begin", version=version, by="test", plan=plan.as_dict())
        return run(
            self.world, plan, release(version), self.journal,
            roll=self.roll, said=lambda _: None, clock=self.clock, **options,
        )  # fmt: skip

    def recover(self, *, back: bool, version: str = "2") -> Outcome:
        """As `fab deploy.resume` or, with ``back``, `fab deploy.abort`, by another process."""
        self.is_dead, self.dies_at = False, None
        told = resume.story(self.journal.lines())
        assert told is not None
        settle(self.world, self.roll(lambda _: None))
        truth = look(self.world, self.zones, 5)
        recovery = Recovery(self.world, told, self.journal, self.roll, lambda _: None, self.clock)
        if back or told.going_back:
            return recovery.take_back(truth)
        return recovery.go_on(truth, release(version), conduct=Conduct())

    def roll(self, said: Any) -> Roll:
        """The steps, on this world's clock."""
        return Roll(self.world, self.limits, said=said, clock=self.clock, sleep=self.clock.sleep)

    def faults(self, version: str | None) -> list[str]:
        """What is wrong when every host should run ``version`` and serve."""
        self.clock.sleep(5)
        for host in self.hosts.values():
            host.call("status")
        found = [f"{h.name} runs {h.version}" for h in self.hosts.values() if h.version != version]
        for balancer in self.balancers.values():
            balancer.ask("show stat")
            found += balancer.wrong
            for name, server in balancer.servers.items():
                if (server.status, server.weight) != ("UP", 100):
                    found.append(f"{name} is {server.status} {server.weight}% on {balancer.name}")
        return found

    def _operated(self, balancer: Balancer) -> Callable[[str], str]:
        def ask(text: str) -> str:
            if text.startswith("s") and not text.startswith("show"):
                self._does(f"{balancer.name} {text.strip()}")
            else:
                self._lives()
            return balancer.ask(text)

        return ask

    def _does(self, thing: str) -> None:
        self._lives()
        if self.dies_at is not None and len(self.done_things) >= self.dies_at:
            self.is_dead = True
            raise Killed(thing)
        self.done_things.append(thing)
        if event := self.events.pop(thing, None):
            event()

    def _lives(self) -> None:
        if self.is_dead:
            raise Killed

    def _seen(self) -> list[rules.Host]:
        return list(look(self.world, self.zones, 5).hosts)

    def _time(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.clock())


def release(version: str) -> Release:
    """What is staged."""
    return Release(version, "0" * 64, 1, datetime(2026, 1, 1, tzinfo=UTC), "test")

"""A whole run of the MySQL drill on the loopback: real servers, watchers, HAProxy and clients.

Only SSH and EC2 are missing. Commands for a host run on this machine, signals for its unit go to
its process, and a host never stops. How long things take here says nothing about a fleet.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mysqld.agents import HEALTH_PORT, Agents
from mysqld.operators import Hands
from mysqld.trio import Trio
from templates.conftest import render_template

from flotilla.agent.ledger_mysql import Order
from flotilla.aws.session import client
from flotilla.drill import mysql as drill
from flotilla.drill import writes
from flotilla.drill.mysql_clients import Clients
from flotilla.drill.mysql_cluster import Watched
from flotilla.hosts.ssh import Result
from flotilla.mysql.operate_rebuild import FORGET, rebuilding
from flotilla.mysql.session import Session
from flotilla.rules.drill_mysql import FAULTS
from flotilla.snapshot import Host, Snapshot

log = logging.getLogger(__name__)

APPS = {"app-1": "127.84.0.1", "app-2": "127.84.0.2"}


class Here(Hands):
    """What a session's Runner does, on this machine."""

    def run(self, host: Host | str, command: str, **options: Any) -> Result:
        name = host if isinstance(host, str) else host.name
        server = self._trio.servers.get(name)
        if server and command.startswith("systemctl"):
            return self._unit(name, command)
        if command == FORGET:
            return super().run(host, command)
        done = subprocess.run(
            ["sh", "-c", command],
            input=options.get("stdin", ""),
            capture_output=True,
            text=True,
            timeout=options.get("seconds", 60),
            check=True,
        )
        return Result(name, done.stdout, done.stderr, done.returncode, 0.0)

    def _unit(self, name: str, command: str) -> Result:
        server = self._trio[name]
        if "--signal=KILL" in command:
            server.kill()
        elif "--signal=STOP" in command:
            server.freeze()
        elif "--signal=CONT" in command:
            server.thaw()
        elif "restart" in command:
            server.kill()
            server.start()
        elif " start" in command and not server.is_running:
            self._trio.start([name])
        return Result(name, "", "", 0, 0.0)


class Local(Watched):
    """Our cluster; a server whose process ended is started again, as its unit would."""

    def __init__(self, trio: Trio, opened: Session) -> None:
        super().__init__(trio.settings, opened)
        self._trio = trio

    def revive(self, name: str) -> bool:
        if not self._trio[name].is_running:
            self._trio.start([name])
        return False

    def rebuild(self, name: str) -> None:
        rebuilding(self._opened, name).apply(lambda _: _quiet())


@contextmanager
def _quiet() -> Iterator[None]:
    yield


class LocalClients(Clients):
    """Clients whose hosts have an address each on this machine."""

    def _order(self, label: str, writers: int) -> Order:
        return replace(super()._order(label, writers), host=APPS.get(label, ""))


def host(name: str, address: str, zone: str, instance_id: str) -> Host:
    role, _, number = name.partition("-")
    return Host(
        name=name,
        instance_id=instance_id,
        role=role,
        number=int(number),
        zone=zone,
        state="running",
        private_ip=address,
        public_ip=None,
        image_id="ami-1",
        type="t3.medium",
        launched_at=datetime.now(UTC),
        tags={},
        asg=None,
    )


def writer_of(name: str, address: str, servers: Mapping[str, str]) -> str:
    """What the role has an application host's HAProxy do for writers, at another address."""
    text = render_template(
        *("haproxy", "haproxy.cfg.j2"),
        host=name,
        haproxy_edge_enabled=False,
        haproxy_local_enabled=True,
        haproxy_local_mysql_servers=dict(servers),
        haproxy_local_mysql_health_port=HEALTH_PORT,
    )
    ours = text[text.index("defaults primaries") : text.index("listen mysql_readers")]
    return ours.replace("127.0.0.1:3306", f"{address}:3306")


@pytest.fixture
def balancers(trio: Trio, tmp_path: Path) -> Iterator[None]:
    """HAProxy of every application host."""
    running = []
    servers = {server.name: server.address for server in trio.servers.values()}
    for name, address in APPS.items():
        path = tmp_path / f"{name}.cfg"
        path.write_text(writer_of(name, address, servers))
        running.append(subprocess.Popen(["haproxy", "-db", "-f", str(path)]))
    yield
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def subject(
    trio: Trio, api: str, balancers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[drill.Drill]:
    """A drill of the trio."""
    monkeypatch.setattr(drill, "Clients", LocalClients)
    client(trio.settings, "s3").create_bucket(
        Bucket=trio.settings.name_of("backups"),
        CreateBucketConfiguration={"LocationConstraint": trio.settings.region},
    )
    zones = [f"eu-central-1{letter}" for letter in "abc"]
    members = [
        host(s.name, s.address, zone, s.instance_id)
        for s, zone in zip(trio.servers.values(), zones, strict=True)
    ]
    apps = [host(n, a, z, f"i-{n}") for (n, a), z in zip(APPS.items(), zones, strict=False)]
    snapshot = Snapshot(time.time(), (*members, *apps))
    with Agents(trio, api) as agents, trio.cluster() as cluster:
        agents.await_whole("mysql-1", seconds=60)
        opened = Session(trio.settings, snapshot, Here(trio, tmp_path), cluster)  # type: ignore[arg-type]
        yield drill.Drill(trio.settings, opened, Local(trio, opened), None, log.info)
        log.info("%s", agents.logs())


@pytest.mark.timeout(400)
def test_kills_and_freezes_one_after_the_other_lose_nothing(
    subject: drill.Drill, trio: Trio
) -> None:
    term = trio.record.term
    each = []
    for fault in ("kill", "freeze", "restart"):
        each.append(subject.run(FAULTS[fault], writers=2))
        told = each[-1]
        log.info("%s", writes.line(len(each) - 1, 3, told))
        assert told["acked"] > 50
        assert (told["lost"], told["dual_writable_seconds"]) == (0, 0), told
        assert (told["not_mended"], told["not_fetched"]) == ("", {})
        assert told["converged_seconds"] is not None
        assert told["write_gap_seconds"] > 0.1
    assert [run["old"] != run["new"] for run in each[:2]] == [True, True]
    assert trio.record.term >= term + 2
    summed = writes.summed(each, FAULTS["kill"])
    assert (summed["runs"], summed["lost"]) == (3, 0)

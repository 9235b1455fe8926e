"""Three servers that are a whole cluster, with the API they keep their record in.

Made once by ``fab mysql.ensure``'s own code, then kept as three stopped data directories: a test
gets copies, which start in seconds. Everything lives in memory, so nothing waits for a disk; what a
killed process had written is still there, as it is after a kill on a real one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mysqld.binaries import Binaries
from mysqld.server import Mysqld, settings_file
from mysqld.trust import OURS

from flotilla import environment
from flotilla.aws.session import client
from flotilla.errors import FlotillaError
from flotilla.mysql import store
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.cluster import Cluster, Seat
from flotilla.mysql.ensure import Ensure
from flotilla.mysql.record import Records
from flotilla.mysql.steps import PORT, REPOINT, TRUST
from flotilla.rules.mysql_state import Place
from flotilla.rules.mysql_topology import Record
from flotilla.settings import Settings
from lab.layout import layout

NAMES = ("mysql-1", "mysql-2", "mysql-3")
# Loopback addresses nobody else uses: the lab's public ones are 127.77.0.0/16.
_NETWORK = "127.83"
_NETWORKS = 250
# Whatever made a kept cluster: another version of it makes another one.
_MADE_BY = ("accounts.py", "ensure.py", "steps.py")
_MEMORY = Path("/dev/shm")
_PREFIX = "flotilla-mysqld-"
_PASSWORDS = {
    "root_password": "root of all",
    "app_password": "an application's",
    "replication_password": "a replica's",
    "monitor_password": "a monitor's",
    "watcher_password": "a watcher's",
    "backup_keys": "the-key-of-this-fleet-s-backups",
}


def scratch() -> Path:
    """A new folder in memory, or on the disk where there is no such thing.

    A test run that was killed leaves its own behind; the next one takes it away.
    """
    base = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
    for left in base.glob(f"{_PREFIX}*-*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))


def _free_network() -> str:
    """The first three numbers of addresses nobody listens on: test runs at once must not meet."""
    first = os.getpid() % _NETWORKS
    for number in (*range(first, _NETWORKS), *range(first)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((f"{_NETWORK}.{number + 1}.1", PORT))
            return f"{_NETWORK}.{number + 1}"
    raise AssertionError(f"all of {_NETWORK}.0.0/16 is taken")


def prepare_account(settings: Settings) -> None:
    """Tables and parameters as provisioning makes them, in an empty account."""
    database = client(settings, "dynamodb")
    for suffix, key in (("clusters", "cluster"), ("locks", "id")):
        database.create_table(
            TableName=settings.name_of(suffix),
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
    client(settings, "ssm").put_parameter(
        Name=settings.parameter("authority", "certificate"),
        Value=OURS.root.public(),
        Type="SecureString",
    )
    for name, value in _PASSWORDS.items():
        client(settings, "ssm").put_parameter(
            Name=settings.parameter("mysql", name), Value=value, Type="SecureString"
        )


class Trio:
    """Three servers, blank or whole, and ways to speak to them. ``start`` from the main thread."""

    def __init__(self, binaries: Binaries, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.folder = folder
        net = _free_network()
        self.servers = {
            name: Mysqld(binaries, folder / name, name, number, f"{net}.{number}")
            for number, name in enumerate(NAMES, 1)
        }

    def __getitem__(self, name: str) -> Mysqld:
        return self.servers[name]

    @property
    def secrets(self) -> Secrets:
        """The passwords of its accounts."""
        return store.secrets(self.settings)

    @property
    def records(self) -> Records:
        """The item that holds the record."""
        return store.records(self.settings)

    @property
    def record(self) -> Record:
        """Who is primary by the record."""
        found = self.records.read()
        assert found is not None
        return found

    @property
    def places(self) -> tuple[Place, ...]:
        """The members as the inventory has them."""
        return tuple(Place(s.name, s.instance_id, s.address) for s in self.servers.values())

    @property
    def primary(self) -> Mysqld:
        """The server that the record names."""
        return next(s for s in self.servers.values() if s.instance_id == self.record.instance_id)

    @property
    def replicas(self) -> list[Mysqld]:
        """Everybody else, by name."""
        return [s for s in self.servers.values() if s.name != self.primary.name]

    def cluster(self, names: Iterable[str] = NAMES) -> Cluster:
        """Seats as the product has them, through Unix sockets."""
        return Cluster(
            Seat(s.name, s.instance_id, s.address, s.session())
            for s in (self.servers[name] for name in names)
        )

    def start(self, names: Iterable[str] = NAMES) -> None:
        """Start and wait until all answer."""
        chosen = [self.servers[name] for name in names]
        for server in chosen:
            server.start()
        for server in chosen:
            server.ready()

    def ensure(self) -> None:
        """Make it whole: ``fab mysql.ensure``."""
        with self.cluster() as cluster:
            Ensure(self.settings, cluster).apply(nullcontext)

    def stop(self) -> None:
        """End all servers in order, those that are frozen too."""
        with ThreadPoolExecutor(len(NAMES)) as pool:
            list(pool.map(Mysqld.stop, self.servers.values()))

    def end(self) -> None:
        """End all servers at once and forget their files."""
        for server in self.servers.values():
            server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def rows(self, name: str, sql: str, *args: object) -> list[Any]:
        """Ask one server something, as root, on a session of its own."""
        session = self.servers[name].session()
        try:
            return list(session.query(sql, args, seconds=20.0))
        finally:
            session.close()


def whole(trio: Trio) -> None:
    """Turn a trio of nothing into a running cluster, from what was kept or from nothing."""
    kept = layout().cache / "mysqld" / "clusters" / _fingerprint(trio)
    if not (kept / "record.json").exists():
        _make(trio, kept)
    noted = json.loads((kept / "record.json").read_text())
    with store.lock(trio.settings, "a test's cluster") as lock:
        first = Record(1, noted["instance_id"], noted["uuid"])
        trio.records.write(first, fence=lock.term)
    for name, server in trio.servers.items():
        server.restore(kept / name)
    trio.start()
    _readdress(trio)
    trio.ensure()


def _make(trio: Trio, kept: Path) -> None:
    first = next(iter(trio.servers.values()))
    first.initialize()
    for server in list(trio.servers.values())[1:]:
        server.restore(first.data)
    trio.start()
    trio.ensure()
    record = trio.record
    trio.stop()
    building = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    for name, server in trio.servers.items():
        shutil.copytree(server.data, building / name)
    noted = {"instance_id": record.instance_id, "uuid": record.uuid}
    (building / "record.json").write_text(json.dumps(noted))
    with suppress(OSError):  # somebody else was quicker
        building.rename(kept)
    client(trio.settings, "dynamodb").delete_item(
        TableName=trio.settings.name_of("clusters"), Key={"cluster": {"S": "mysql"}}
    )


def _readdress(trio: Trio) -> None:
    """The kept servers follow the address that their source had when they were made."""
    for server in trio.replicas:
        session = server.session()
        with suppress(FlotillaError):
            session.query(REPOINT, (trio.primary.address, PORT))
            session.query(TRUST, (str(server.served), 1))
        session.close()


def _fingerprint(trio: Trio) -> str:
    first = next(iter(trio.servers.values()))
    sources = environment.root() / "scripts" / "flotilla" / "mysql"
    parts = [first.binaries.id, settings_file(1, "", Path())]
    parts += [(sources / name).read_text() for name in _MADE_BY]
    parts.append(Path(__file__).with_name("server.py").read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def running(binaries: Binaries, settings: Settings) -> Iterator[Trio]:
    """A whole cluster for as long as the block lasts."""
    trio = Trio(binaries, scratch(), settings)
    try:
        whole(trio)
        yield trio
    finally:
        trio.end()

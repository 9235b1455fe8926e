"""Three Redis servers with their Sentinels on loopback, from the newest image's own programs and
the role's own templates.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import yaml
from mysqld.binaries import NoImageError, disks_of, first, newest, with_libraries

from flotilla.rules import authority
from flotilla.wait import until
from lab.layout import layout

ROLE = Path(__file__).resolve().parents[2] / "roles" / "redis"
sys.path[:0] = [str(ROLE / "files"), str(ROLE.parent / "tls" / "files")]

import redis_node  # noqa: E402  the role's own file
import tls_leaf  # noqa: E402  the role's own file

HOSTS = {"redis-1": "127.88.0.1", "redis-2": "127.88.0.2", "redis-3": "127.88.0.3"}
CLUSTER = "shop-lab"
PORT, SENTINEL_PORT, HEALTH_PORT = 16379, 26399, 13381
DOWN_AFTER_MS = 3000
ZONE = "redis.shop.lab.internal"
NETWORK = "127.88.0.0/24"


def program() -> list[str]:
    """What runs redis-server. Raises NoImageError."""
    where = layout()
    disks = disks_of(where.storage, newest(where.amis, "redis"))
    loader = first(disks, Path("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
    server = first(disks, Path("usr/bin/redis-server"))
    # All of Redis is one file that does what it is called.
    return [*with_libraries(disks[0], disks, loader), "--argv0", "redis-server", str(server)]


def checker() -> list[str]:
    """What runs redis-check-rdb."""
    return ["redis-check-rdb" if word == "redis-server" else word for word in program()]


class Process:
    """A server that can be killed, frozen and started again."""

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        self._argv, self._log = argv, folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    def start(self) -> None:
        self.started = time.time()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """As systemd does: ask it to end, and wait."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


class Trust:
    """An authority with an issuer for role redis, and what hosts make with that."""

    def __init__(self) -> None:
        past = datetime.now(UTC) - timedelta(days=30)
        self.root = authority.root("shop", "lab", authority.new_key(), past)
        self.issuer = self.issued(datetime.now(UTC))

    def issued(self, now: datetime) -> authority.Authority:
        """An issuer of that age."""
        return authority.issuer(ZONE, NETWORK, self.root, authority.new_key(), now)

    def wanted(self, name: str) -> tls_leaf.Settings:
        """What /etc/flotilla/tls/tls.json of that host would say."""
        return tls_leaf.Settings([ZONE, f"{name}.{ZONE}"], [HOSTS[name]], 168, "redis")

    def leaf(self, name: str, *, now: datetime | None = None, **changes: Any) -> bytes:
        """Key, certificate, issuer. ``now`` is when it is made, ``changes`` are to ``wanted``."""
        wanted = replace(self.wanted(name), **changes)
        made = tls_leaf.made(wanted, *self.issuer, now or datetime.now(UTC))
        return bytes(made[0])


class Group:
    """The hosts; ``servers`` and ``sentinels`` are their processes."""

    def __init__(self, argv: Sequence[str], folder: Path, *, plain: bool = False) -> None:
        self.folder = folder
        self.authority = Trust()
        self._plain = plain
        redis_node.AUTHORITY = folder / "authority.pem"
        redis_node.AUTHORITY.write_text(self.authority.root.public())
        self.servers: dict[str, Process] = {}
        self.sentinels: dict[str, Process] = {}
        for name in HOSTS:
            self._host(argv, name)

    def settings(self, name: str) -> redis_node.Settings:
        """What /etc/redis/flotilla.json of that host would say."""
        return redis_node.Settings(
            name=name,
            cluster=CLUSTER,
            hosts=HOSTS,
            initial="redis-1",
            port=PORT,
            sentinel_port=SENTINEL_PORT,
            health_port=HEALTH_PORT,
            monitor_user="monitor",
            monitor_password="monitor",
            operator_user="sentinel",
            operator_password="sentinel",
            sentinel={
                "quorum": "2",
                "down-after-milliseconds": str(DOWN_AFTER_MS),
                "failover-timeout": "10000",
                "parallel-syncs": "1",
            },
        )

    def client(self, name: str, *, operator: bool = True) -> Any:
        return redis_node.connect(self.settings(name), HOSTS[name], PORT, operator=operator)

    def app(self, name: str, **options: Any) -> Any:
        """The application's account, as a client that believes only the authority."""
        return redis_node.redis_tls.client(
            redis_node.AUTHORITY,
            host=HOSTS[name],
            port=PORT,
            username="app",
            password="app",
            **options,
        )

    def sentinel(self, name: str) -> Any:
        return redis_node.connect(self.settings(name), HOSTS[name], SENTINEL_PORT, operator=True)

    def start(self) -> None:
        """Everything, and wait until it is one group."""
        for process in self.servers.values():
            process.start()
        for process in self.sentinels.values():
            process.start()
        if self._plain:
            return
        self.settle()

    def settle(self) -> None:
        """Wait until it is one group."""
        until(self.is_whole, seconds=40, every=0.2)
        for name in HOSTS:
            redis_node.hasten(self.settings(name))

    def end(self) -> None:
        for process in (*self.sentinels.values(), *self.servers.values()):
            process.end()

    def is_whole(self) -> bool:
        """One primary, two that follow, and every Sentinel knows all of them."""
        try:
            primary = self.primary()
            roles = [self.client(name).info("replication") for name in HOSTS if name != primary]
            seen = [
                redis_node.redis_move.pairs(
                    self.sentinel(name).execute_command("SENTINEL", "MASTER", CLUSTER)
                )
                for name in HOSTS
            ]
        except (redis_node.redis.exceptions.RedisError, LookupError):
            return False
        return all(role.get("master_link_status") == "up" for role in roles) and all(
            (row["num-slaves"], row["num-other-sentinels"]) == ("2", "2") for row in seen
        )

    def primary(self) -> str:
        """Who says so, alone. Raises LookupError."""
        found = []
        for name in HOSTS:
            with suppress(redis_node.redis.exceptions.RedisError):
                if self.client(name).execute_command("ROLE")[0] == "master":
                    found.append(name)
        if len(found) != 1:
            raise LookupError(found)
        return found[0]

    def offered(self) -> list[str]:
        """The hosts that their health endpoints would offer to clients now."""
        settings = self.settings("redis-1")
        words = redis_node.ask_all(settings)
        return [
            name
            for name, address in HOSTS.items()
            if redis_node.rules.offered(
                redis_node.own_role(self.client(name, operator=False)), words, me=address
            )[0]
        ]

    def certify(self, name: str, **changes: Any) -> None:
        """A new certificate for a host, as its timer makes it; see ``Trust.leaf``."""
        (self.folder / name / "leaf.pem").write_bytes(self.authority.leaf(name, **changes))

    def _host(self, argv: Sequence[str], name: str) -> None:
        folder = self.folder / name
        data = folder / "data"
        data.mkdir(parents=True)
        values = _values(name) | {
            "__redis_leaf": folder / "leaf.pem",
            "__redis_authority": redis_node.AUTHORITY,
        }
        self.certify(name)
        for file in ("users.acl", "sentinel.acl"):
            (folder / file).write_text(_rendered(f"{file}.j2", values))
        owned = _rendered("flotilla.conf.j2", values)
        # On one machine only one of them can have that.
        owned = owned.replace(f"{HOSTS[name]} 127.0.0.1", HOSTS[name])
        owned = owned.replace("/var/lib/redis/data", str(data))
        owned = owned.replace("/etc/redis/users.acl", str(folder / "users.acl"))
        role = "" if name == "redis-1" else f"replicaof {HOSTS['redis-1']} {PORT}\n"
        (folder / "redis.conf").write_text("# Redis' own\n")
        (folder / "flotilla.conf").write_text(owned)
        (folder / "role.conf").write_text(role)
        settings = self.settings(name)
        encrypted = redis_node.redis_tls.sentinel_lines(
            SENTINEL_PORT, folder / "leaf.pem", redis_node.AUTHORITY
        )
        if self._plain:
            # As before there was TLS: what the owned file says comes later.
            (folder / "flotilla.conf.tls").write_text(owned)
            kept = [line for line in owned.splitlines() if not line.startswith(("port", "tls-"))]
            (folder / "flotilla.conf").write_text("\n".join([f"port {PORT}", *kept]) + "\n")
            encrypted = [f"port {SENTINEL_PORT}"]
        lines = [
            *encrypted,
            f"bind {HOSTS[name]}",
            f"dir {folder}",
            f"aclfile {folder / 'sentinel.acl'}",
            f"sentinel announce-ip {HOSTS[name]}",
            f"sentinel monitor {CLUSTER} {HOSTS['redis-1']} {PORT} 2",
            *(
                f"sentinel {key} {CLUSTER} {value}"
                for key, value in redis_node.sentinel_options(settings).items()
            ),
            f"sentinel sentinel-user {settings.operator_user}",
            f"sentinel sentinel-pass {settings.operator_password}",
        ]
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
        # The same order as in the role's unit.
        files = ["redis.conf", "--include", "flotilla.conf", "--include", "role.conf"]
        own = [f if f.startswith("--") else str(folder / f) for f in files]
        self.servers[name] = Process([*argv, *own], folder)
        self.sentinels[name] = Process([*argv, str(folder / "sentinel.conf"), "--sentinel"], folder)


@contextmanager
def running(folder: Path, *, plain: bool = False) -> Iterator[Group]:
    """A whole group, ended afterwards; with ``plain``, from before there was TLS, and started only.

    Raises NoImageError where there is none to be had.
    """
    group = Group(program(), folder, plain=plain)
    try:
        group.start()
        yield group
    finally:
        group.end()


def _values(name: str) -> dict[str, Any]:
    passwords = {
        f"redis_{who}_password": who for who in ("app", "replication", "sentinel", "monitor")
    }
    return {
        **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        **passwords,
        "inventory_hostname": name,
        "redis_hosts": HOSTS,
        "redis_port": PORT,
        "redis_maxmemory_mb": 64,
        "redis_maxmemory_policy": "noeviction",
        "redis_min_replicas": 1,
        "redis_min_replicas_max_lag_seconds": 3,
        "redis_backlog_mb": 16,
        "redis_app_keys": ["*"],
        "redis_also_accepted": {},
        "ansible_managed": "",
    }


def _rendered(template: str, values: dict[str, Any]) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["hash"] = lambda text, kind: hashlib.new(kind, text.encode()).hexdigest()
    environment.filters["regex_replace"] = lambda text, what, by: re.sub(what, by, text)
    return environment.from_string((ROLE / "templates" / template).read_text()).render(values)


__all__ = ["CLUSTER", "HOSTS", "PORT", "Group", "NoImageError", "redis_node", "running"]

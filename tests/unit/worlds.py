"""A healthy fleet of twelve, as fleet.status sees it, to break one thing at a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flotilla.rules.images import Image
from flotilla.rules.redis import Member
from flotilla.rules.rotation import Server
from flotilla.rules.status_world import App, Balancer, Disk, Host, Report, Traffic, World

COUNTS = {"bastion": 1, "lb": 2, "app": 3, "mysql": 3, "redis": 3}
UNITS = {"lb": "haproxy", "app": "app", "mysql": "mysql", "redis": "redis-server"}
BORN = datetime(2026, 1, 1, tzinfo=UTC)


def image(role: str, number: int = 1, status: str = "tested") -> Image:
    return Image(
        f"ami-{role}-{number}", f"flotilla-{role}-{number}", role, "available", status, BORN,
        "hash", "ami-source", "build", "commit", git_dirty=False, root_device="/dev/xvda",
    )  # fmt: skip


def report(role: str, **changes: Any) -> Report:
    units = {"ssh": "active"} | ({UNITS[role]: "active"} if role in UNITS else {})
    return replace(Report(units=units, disks=(Disk("/", 30.0, 5.0, 10**10),)), **changes)


def host(name: str, **changes: Any) -> Host:
    role = name.partition("-")[0]
    made = Host(
        name, f"i-{name}", role, "eu-central-1a", "running", 3600.0, f"ami-{role}-1", image(role)
    )
    return replace(made, **({"report": report(role)} | changes))


def server(name: str, status: str = "UP", check: str = "L7OK") -> Server:
    return Server(name, status, check, 0, 0)


def balancer(name: str, vrrp: str, **changes: Any) -> Balancer:
    servers = {f"app-{n}": server(f"app-{n}") for n in (1, 2, 3)}
    made = Balancer(name, f"i-{name}", vrrp, servers=servers, traffic=Traffic(10, 1, 0, 5))
    return replace(made, **changes)


def app(name: str, **changes: Any) -> App:
    proxies = {
        "mysql_writer": ("mysql-1",),
        "mysql_readers": ("mysql-2", "mysql-3"),
        "redis_primary": ("redis-1",),
    }
    made = App(name, "v1", is_active=True, is_stale=False, served="v1", ready=200, proxies=proxies)
    return replace(made, **changes)


def cache(number: int, role: str = "replica", **changes: Any) -> Member:
    made = Member(
        name=f"redis-{number}",
        instance_id=f"i-redis-{number}",
        address=f"10.0.0.{number}",
        role=role,
        error=None,
        primary_address="10.0.0.1" if role == "replica" else None,
        is_linked=True if role == "replica" else None,
        replicas=2,
        good_replicas=2,
        offset=1000,
        used_bytes=1,
        max_bytes=100,
        is_persisting=True,
        version="8.0.2",
        uptime_seconds=10,
        clients=1,
        names={f"redis-{n}": "10.0.0.1" for n in (1, 2, 3)},
        quorum_error=None,
    )
    return replace(made, **changes)


def mysql(**changes: Any) -> dict[str, Any]:
    """What flotilla.mysql.status gives for a healthy cluster."""
    primary = {"name": "mysql-1", "role": "primary", "acknowledging_replicas": 2}
    replicas = [
        {"name": f"mysql-{n}", "role": "replica", "lag_seconds": 0.0, "why": ""} for n in (2, 3)
    ]
    members = [primary | {"lag_seconds": None, "why": ""}, *replicas]
    found = {"term": 1, "primary": "mysql-1", "members": members, "problems": [], "next": ""}
    return found | changes


def names() -> list[str]:
    return [f"{role}-{n + 1}" for role, count in COUNTS.items() for n in range(count)]


def world(**changes: Any) -> World:
    made = World(
        fleet="flotilla-lab",
        wanted=COUNTS,
        hosts=tuple(host(name) for name in names()),
        edge_address="203.0.113.1",
        edge_owner="i-lb-1",
        balancers=(balancer("lb-1", "MASTER"), balancer("lb-2", "BACKUP")),
        apps=tuple(app(f"app-{n}") for n in (1, 2, 3)),
        mysql=mysql(),
        redis=(cache(1, "primary"), cache(2), cache(3)),
    )
    return replace(made, **changes)


def with_host(name: str, **changes: Any) -> World:
    """The healthy fleet with one host that differs."""
    fleet = world()
    return replace(
        fleet, hosts=tuple(replace(h, **changes) if h.name == name else h for h in fleet.hosts)
    )


def silenced(*quiet: str, why: str = "no answer") -> World:
    """The healthy fleet with hosts that do not answer, and so nothing that they would have said."""
    fleet = world()
    members = [one for one in mysql()["members"] if one["name"] not in quiet]
    members += [{"name": n, "role": "silent", "why": why} for n in quiet if n.startswith("mysql")]
    return replace(
        fleet,
        hosts=tuple(
            replace(h, silent=why, report=None) if h.name in quiet else h for h in fleet.hosts
        ),
        balancers=tuple(one for one in fleet.balancers if one.name not in quiet),
        apps=tuple(one for one in fleet.apps if one.name not in quiet),
        mysql=mysql(members=members),
        redis=tuple(one for one in fleet.redis if one.name not in quiet),
    )

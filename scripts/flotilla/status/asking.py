"""What is asked of one host, and its answer as the rules want it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flotilla.deploy.world import TOOL
from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts import haproxy, redis
from flotilla.rules import lb_maintenance
from flotilla.rules.lb_certificate import Certificate, Renewal
from flotilla.rules.lb_maintenance import MAP, Notice
from flotilla.rules.redis import Member
from flotilla.rules.rotation import Server
from flotilla.rules.status_world import App, Balancer, Disk, Follows, Report, Tls, Traffic
from flotilla.settings import Settings
from flotilla.snapshot import Host

SOURCE = Path(__file__).with_name("probe.py")
EDGE_STATE = "/run/flotilla-address/state.json"
# Where the release tool finds how to ask the application.
RELEASE = "/etc/app/release.json"
DISCOVERY_REPORT = "/var/lib/flotilla-discovery/report.json"
RENEWAL_REPORT = "/var/lib/flotilla-certificate/report.json"
RENEWAL_UNIT = "flotilla-certificate"
# On every host that makes certificates for itself.
TLS = "/etc/flotilla/tls"
BACKEND = "app"
_AGGREGATES = frozenset({"FRONTEND", "BACKEND"})

# What has to run on a host of each role; everything else is only told of when it failed.
UNITS = {
    "bastion": ("ssh",),
    "lb": ("ssh", "haproxy", "keepalived", "flotilla-address", "flotilla-discovery"),
    "app": ("ssh", "nginx", "haproxy", "app"),
    "mysql": ("ssh", "mysql", "flotilla-mysql-agent"),
    "redis": ("ssh", "redis-server", "redis-sentinel", "redis-health"),
}


def command(settings: Settings, role: str) -> str:
    """The shell command that runs the probe, which it reads from its input."""
    wanted: dict[str, Any] = {"units": list(UNITS.get(role, ("ssh",))), "disks": ["/"]}
    wanted["tls"] = TLS
    if role == "mysql":
        wanted["disks"].append("/var/lib/mysql")
    if role in {"lb", "app"}:
        wanted["haproxy"] = haproxy.SOCKET
    if role == "lb":
        wanted["edge"] = EDGE_STATE
        wanted["discovery"] = DISCOVERY_REPORT
        wanted["questions"] = {"maintenance": f"show map {MAP}"}
        if settings.lb.acme:
            wanted["units"].append(RENEWAL_UNIT)
            wanted["renewal"] = RENEWAL_REPORT
    if role == "app":
        wanted["app"] = {
            "tool": TOOL,
            "settings": RELEASE,
            "version_path": settings.application.version_path,
            "ready_path": settings.application.ready_path,
        }
    if role == "redis":
        wanted["redis"] = shlex.split(redis.REPORTER)
    return f"python3 -I - {shlex.quote(json.dumps(wanted))}"


def parsed(host: Host, text: str) -> Mapping[str, Any]:
    """The probe's answer. Raises HostFailed when it is none."""
    try:
        answer: Mapping[str, Any] = json.loads(text)
    except ValueError as error:
        raise HostFailed(f"{host.name}: its answer cannot be read ({error})") from error
    return answer


def report(answer: Mapping[str, Any], *, now: float) -> Report:
    """What every host says; ``now`` is the operator's clock in the middle of the asking."""
    units, failed, agent = (answer[key] for key in ("units", "failed_units", "agent"))
    disks = {json.dumps({**one, "path": ""}): one for one in reversed(answer["disks"])}
    left_out = isinstance(agent, Mapping) and not agent.get("installed", True)
    return Report(
        units={"systemd": units["error"]} if "error" in units else units,
        failed_units=tuple(failed) if isinstance(failed, list) else (),
        disks=tuple(Disk(**one) for one in disks.values() if "error" not in one),
        agent_missing=str(agent.get("reason", "it says no reason")) if left_out else None,
        clock_offset_seconds=answer["at"] - now,
        tls=_tls(answer.get("tls")),
    )


def _tls(found: Any) -> Tls | None:
    """What the host says of its own certificate; None where it makes none."""
    if found is None:
        return None
    try:
        if "error" in found:
            return Tls(error=str(found["error"]))
        ends = found["ends"]
        return Tls(ends["leaf"], ends["issuer"], found.get("hours"))
    except (KeyError, TypeError, AttributeError) as error:
        return Tls(error=f"its answer cannot be read ({error})")


def balancer(host: Host, answer: Mapping[str, Any], traffic: Traffic | None) -> Balancer:
    """A load balancer's own part."""
    edge = answer["edge"] or {}
    known: dict[str, Any] = {
        "vrrp": edge.get("vrrp", ""),
        "note": edge.get("note", edge.get("error", "")),
        "follows": _follows(answer.get("discovery"), answer["at"]),
        "certificates": _certificates(answer.get("discovery")),
        "maintenance": _maintenance(answer.get("maintenance") or {}),
        "renewal": _renewal(answer.get("renewal"), answer["at"]),
    }
    try:
        rows = haproxy.parse_stat(_stat(answer), host.name)
    except FlotillaError as error:
        return Balancer(host.name, host.instance_id, **known, error=error.what, traffic=traffic)
    servers = {
        row["svname"]: haproxy.as_server(row)
        for row in rows
        if row["pxname"] == BACKEND and row["svname"] not in _AGGREGATES
    }
    return Balancer(host.name, host.instance_id, **known, servers=servers, traffic=traffic)


def _maintenance(answer: Mapping[str, Any]) -> Notice | None:
    """Who put up the maintenance page; None also where HAProxy does not say."""
    try:
        return lb_maintenance.running(answer.get("stat", ""))
    except ValueError:
        return None


def _certificates(found: Any) -> tuple[Certificate, ...]:
    """Those that the load balancer says it serves."""
    told = found.get("certificates", ()) if isinstance(found, Mapping) else ()
    return tuple(Certificate(**one) for one in told)


def _renewal(found: Any, now: float) -> Renewal | None:
    """What the service that orders certificates said last, on the host's own clock."""
    if not isinstance(found, Mapping) or "at" not in found:
        return None
    age = max(0.0, now - found["at"])
    return Renewal(age, str(found.get("trouble", "")), str(found.get("failed", "")))


def _follows(found: Any, now: float) -> Follows | None:
    """What the discovery said last, on the host's own clock."""
    if not isinstance(found, Mapping) or "at" not in found:
        return None
    changes = found.get("changes") or [{}]
    return Follows(
        age_seconds=max(0.0, now - found["at"]),
        hosts=found["hosts"],
        trouble=found["trouble"],
        notes=tuple(found["notes"]),
        last=" ".join(str(changes[0].get(key, "")) for key in ("kind", "name")).strip(),
        last_age_seconds=max(0.0, now - changes[0].get("at", now)),
    )


def application(host: Host, answer: Mapping[str, Any]) -> App:
    """An application host's own part."""
    found = answer["app"]
    error = found.get("error", "")
    proxies: dict[str, tuple[str, ...]] | None = None
    try:
        proxies = _proxies(haproxy.parse_stat(_stat(answer), host.name))
    except FlotillaError as problem:
        error = error or problem.what
    return App(
        name=host.name,
        release=found.get("current"),
        is_active=bool(found.get("active")),
        is_stale=bool(found.get("stale")),
        served=found.get("served"),
        ready=found.get("ready"),
        proxies=proxies,
        error=error,
    )


def cache(host: Host, answer: Mapping[str, Any]) -> Member | str:
    """A Redis host's own part, or why there is none."""
    found = answer["redis"]
    try:
        return redis.member(host, found)
    except (KeyError, TypeError) as error:
        return str(found.get("error") or f"its Redis report has no {error}")


def _stat(answer: Mapping[str, Any]) -> str:
    found = answer["haproxy"]
    if "error" in found:
        raise HostFailed(f"its runtime socket: {found['error']}")
    return str(found["stat"])


def _proxies(rows: list[dict[str, str]]) -> dict[str, tuple[str, ...]]:
    """By proxy, the servers it would connect to now; spare ones only where no other is left."""
    proxies: dict[str, list[tuple[Server, bool]]] = {}
    for row in rows:
        servers = proxies.setdefault(row["pxname"], [])
        if row["svname"] not in _AGGREGATES:
            servers.append((haproxy.as_server(row), row.get("bck") == "1"))
    return {proxy: _chosen(servers) for proxy, servers in proxies.items() if servers}


def _chosen(servers: list[tuple[Server, bool]]) -> tuple[str, ...]:
    up = [(server.name, spare) for server, spare in servers if server.is_serving]
    return tuple(name for name, spare in up if not spare) or tuple(name for name, _ in up[:1])

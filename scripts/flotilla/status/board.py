"""A look at the fleet as one object for programs, and as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flotilla.rules import redis as redis_rules
from flotilla.rules.status import is_well
from flotilla.rules.status_finding import Finding
from flotilla.rules.status_traffic import CACHE, READERS, WRITER
from flotilla.rules.status_world import App, Balancer, Host, World

Document = dict[str, Any]

# Nothing of ours is wider, so a line that is piped stays one line; a terminal wraps.
PIPE_COLUMNS = 1000
_BAD = "bold red"
_STYLES = {"down": _BAD, "risk": "yellow", "note": "dim"}
_DAY = 86400


def document(world: World, found: Iterable[Finding], *, at: datetime, seconds: float) -> Document:
    """Everything that was seen, JSON types only.

    {fleet, at, seconds, ok, findings, inventory, lock, edge, hosts, lb, app, mysql, redis};
    ``ok`` is whether nobody has to act, ``seconds`` how long the look took.
    """
    findings = list(found)
    chosen = redis_rules.primary(world.redis)
    return {
        "fleet": world.fleet,
        "at": at.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "ok": is_well(findings),
        "findings": [finding.as_dict() for finding in findings],
        "inventory": {
            "age_seconds": round(world.inventory_age_seconds, 1),
            "warning": world.inventory_warning,
            "problems": list(world.inventory_problems),
        },
        "lock": world.lock,
        "edge": {
            "address": world.edge_address,
            "owner": world.named(world.edge_owner),
            "vrrp": {one.name: one.vrrp for one in world.balancers},
        },
        "hosts": [_host(host) for host in world.hosts],
        "lb": [_balancer(one) for one in world.balancers],
        "app": [_app(one) for one in world.apps],
        "mysql": dict(world.mysql) if world.mysql is not None else {"error": world.mysql_error},
        "redis": {
            "primary": chosen.name if chosen else None,
            "members": [asdict(member) for member in world.redis],
            "errors": dict(world.redis_errors),
        },
    }


def _host(host: Host) -> Document:
    report = host.report
    return {
        "name": host.name,
        "instance_id": host.instance_id,
        "role": host.role,
        "zone": host.zone,
        "state": host.state,
        "age_seconds": round(host.age_seconds),
        "image": {
            "id": host.image_id,
            "name": host.image.name if host.image else None,
            "created_at": host.image.created_at.isoformat() if host.image else None,
            "tested": host.image.is_tested if host.image else None,
            "newer": host.newer.name if host.newer else None,
        },
        "silent": host.silent or None,
        "report": asdict(report) if report else None,
    }


def _balancer(balancer: Balancer) -> Document:
    return {
        "name": balancer.name,
        "vrrp": balancer.vrrp,
        "note": balancer.note,
        "error": balancer.error or None,
        "servers": [asdict(one) for one in balancer.servers.values()]
        if balancer.servers is not None
        else None,
        "traffic": asdict(balancer.traffic) if balancer.traffic else None,
        "follows": asdict(balancer.follows) if balancer.follows else None,
        "certificates": [asdict(one) for one in balancer.certificates],
        "maintenance": asdict(balancer.maintenance) if balancer.maintenance else None,
    }


def _app(app: App) -> Document:
    return {
        "name": app.name,
        "release": app.release,
        "active": app.is_active,
        "stale": app.is_stale,
        "served": app.served,
        "ready": app.ready,
        "proxies": {name: list(up) for name, up in app.proxies.items()} if app.proxies else None,
        "error": app.error or None,
    }


def text(seen: Document) -> str:
    """The board without colours, for pipes and files."""
    console = Console(width=PIPE_COLUMNS, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(tables(seen))
    lines = captured.get().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def tables(seen: Document, *, worst_first: bool = False) -> RenderableType:
    """The board, for a rich console; ``worst_first`` where the end may be cut off."""
    head = f"{seen['fleet']}  {seen['at']}  looked for {seen['seconds']:.1f} s"
    parts: list[RenderableType] = [_hosts(seen), Text(), _edge(seen)]
    for table in (_lb(seen), _apps(seen), _mysql(seen), _redis(seen)):
        parts += [table, Text()] if table else []
    found = list(_findings(seen["findings"], ok=seen["ok"]))
    parts = [*found, Text(), *parts] if worst_first else [*parts, *found]
    return Group(Text(head, style="bold"), *parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold cyan", padding=(0, 2, 0, 0))
    for column in columns:
        # What is one word stays one; sentences and lists wrap.
        table.add_column(column, no_wrap=column not in {"servers", "units", ""})
    return table


def _hosts(seen: Document) -> Table:
    table = _table("host", "zone", "state", "image", "is", "age", "disk", "units")
    for host in seen["hosts"]:
        image, report = host["image"], host["report"]
        style = "" if report else _BAD
        table.add_row(
            host["name"],
            host["zone"],
            host["state"] if report or host["state"] != "running" else "silent",
            # The names of a role's images differ in their time only.
            (image["name"] or image["id"]).rpartition(f"-{host['role']}-")[2],
            _image_is(image),
            _age(host["age_seconds"]),
            f"{max(d['used_percent'] for d in report['disks']):.0f} %"
            if report and report["disks"]
            else "-",
            _units(report),
            style=style,
        )
    return table


def _image_is(image: Mapping[str, Any]) -> str:
    if image["name"] is None:
        return "gone"
    if not image["tested"]:
        return "untested"
    return "old" if image["newer"] else "newest"


def _units(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "-"
    bad = [f"{unit} {state}" for unit, state in report["units"].items() if state != "active"]
    bad += [f"{unit} failed" for unit in report["failed_units"] if unit not in report["units"]]
    return ", ".join(bad) or "ok"


def _edge(seen: Document) -> Text:
    edge = seen["edge"]
    if edge["address"] is None:
        return Text("clients: EC2 does not say who has the address", style=_BAD)
    what = f"{edge['address'] or 'no address'} with {edge['owner'] or 'nobody'}"
    return Text(f"clients: {what}", style="" if edge["owner"] else _BAD)


def _lb(seen: Document) -> Table | None:
    table = _table(
        "lb", "vrrp", "requests/s", "sessions", "5xx", "ms", "last change by EC2", "servers"
    )
    for one in seen["lb"]:
        traffic = one["traffic"] or {}
        keys = ("requests_per_second", "sessions", "errors", "milliseconds")
        table.add_row(
            one["name"],
            one["vrrp"] or "-",
            *(str(traffic.get(key, "-")) for key in keys),
            _follows(one["follows"]),
            _servers(one["servers"]) if one["servers"] is not None else one["error"],
        )
    return table if seen["lb"] else None


def _follows(follows: Mapping[str, Any] | None) -> str:
    """What the discovery did last, and when; or that it does nothing."""
    if follows is None or follows["trouble"]:
        return "not followed"
    if not follows["last"]:
        return "none"
    return f"{follows['last']}, {_age(follows['last_age_seconds'])} ago"


def _servers(servers: Iterable[Mapping[str, Any]]) -> Text:
    line = Text()
    for number, server in enumerate(servers):
        style = "green" if server["status"] == "UP" else _BAD
        line.append(", " if number else "").append(f"{server['name']} {server['status']}", style)
    return line


def _apps(seen: Document) -> Table | None:
    table = _table("app", "release", "ready", "writes to", "reads from", "sessions")
    for one in seen["app"]:
        proxies = one["proxies"] or {}
        table.add_row(
            one["name"],
            _release(one),
            str(one["ready"] or "-"),
            *(", ".join(proxies.get(proxy, ())) or "-" for proxy in (WRITER, READERS, CACHE)),
            style="" if one["ready"] == 200 else _BAD,
        )
    return table if seen["app"] else None


def _release(one: Mapping[str, Any]) -> str:
    release, served = one["release"] or "-", one["served"]
    return f"{release} (answers {served})" if served and served != release else release


def _mysql(seen: Document) -> Table | Text:
    found = seen["mysql"]
    if "members" not in found:
        return Text(f"mysql: {found['error']}", style=_BAD)
    columns = ("role", "writable", "term", "lag_seconds", "semi_sync", "acknowledging_replicas")
    table = _table("mysql", "role", "writable", "term", "lag s", "semi-sync", "acknowledging", "")
    for one in sorted(found["members"], key=lambda member: str(member["name"])):
        cells = (_cell(one.get(column)) for column in columns)
        style = _BAD if one.get("why") else ""
        table.add_row(one["name"], *cells, one.get("why") or "", style=style)
    return table


def _redis(seen: Document) -> Table | None:
    found = seen["redis"]
    table = _table("redis", "role", "offset", "behind", "clients", "memory", "sentinels name")
    addresses = {one["address"]: one["name"] for one in found["members"]}
    primary = next((one for one in found["members"] if one["name"] == found["primary"]), None)
    for one in found["members"]:
        named = {addresses.get(name, name) for name in one["names"].values() if name}
        behind = (primary or one)["offset"] and one["offset"] is not None
        table.add_row(
            one["name"],
            one["role"] or "-",
            _cell(one["offset"]),
            str(max(0, (primary or one)["offset"] - one["offset"])) if behind else "-",
            _cell(one["clients"]),
            f"{one['used_bytes'] / 1e6:.0f} MB" if one["used_bytes"] else "-",
            ", ".join(sorted(named)) or "nobody",
            style="" if one["role"] else _BAD,
        )
    return table if found["members"] else None


def _findings(found: Iterable[Mapping[str, str]], *, ok: bool) -> Iterator[Text]:
    yield Text("all is well" if ok else "what is wrong", style="bold green" if ok else "bold")
    for one in found:
        line = Text(f"{one['severity']:5} ", style=_STYLES[one["severity"]])
        after = f"\n      {one['next']}"
        if one["page"]:
            after += f"    # docs/runbooks/{one['page']}.md"
        yield line.append(one["what"], style="").append(after, style="dim")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return _yes(value)
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _yes(value: object) -> str:
    return "-" if value is None else "yes" if value else "no"


def _age(seconds: float) -> str:
    days, rest = divmod(int(seconds), _DAY)
    if days:
        return f"{days} d"
    hours, rest = divmod(rest, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min"

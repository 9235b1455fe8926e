"""What is wrong on the way of a request: Elastic IP, load balancers, application hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from flotilla.rules import lb_certificate, lb_maintenance
from flotilla.rules.lb_maintenance import Kept
from flotilla.rules.rotation import Server
from flotilla.rules.status_finding import (
    NO_WRITES,
    STATUS,
    Finding,
    Severity,
    down,
    listed,
    note,
    risk,
)
from flotilla.rules.status_world import App, Host, World

# Proxies of the HAProxy on an application host.
WRITER, READERS, CACHE = "mysql_writer", "mysql_readers", "redis_primary"

# It tells at every look, and those are at most 12 s apart.
SILENT_SECONDS = 30.0

LOST, SLOW, LOCKED = "load-balancer-is-lost", "site-is-slow-or-down", "lock-is-held"
FAILED_DEPLOY, UNFOLLOWED = "deploy-failed", "load-balancer-does-not-follow"
MAINTENANCE = "show-a-maintenance-page"


def edge(world: World) -> Iterator[Finding]:
    """Who has the Elastic IP, and whether VRRP agrees."""
    balancers = {host.instance_id: host for host in world.hosts if host.role == "lb"}
    if not balancers or world.edge_owner is None:
        return
    if not world.edge_address:
        yield down("edge", "the fleet has no Elastic IP for clients", "fab fleet.provision")
        return
    owner = balancers.get(world.edge_owner)
    yield from _owner(world, owner)
    yield from _masters(world, owner)


def _owner(world: World, owner: Host | None) -> Iterator[Finding]:
    claims = f"fab fleet.logs {_first(world)} --unit flotilla-address"
    if not world.edge_owner:
        yield down("edge", f"nobody has the Elastic IP {world.edge_address}", claims, LOST)
    elif owner is None:
        who = world.named(world.edge_owner)
        what = f"{world.edge_address} is with {who}, which is no load balancer of this fleet"
        yield down("edge", what, claims, LOST)
    elif (owner.silent and not world.is_blind) or not owner.is_active:
        what = f"the Elastic IP {world.edge_address} is with {owner.name}, which does not answer"
        yield down("edge", what, claims, LOST)


def _masters(world: World, owner: Host | None) -> Iterator[Finding]:
    keepalived = f"fab fleet.logs {_first(world)} --unit keepalived"
    asked = [one for one in world.balancers if one.vrrp]
    masters = [one for one in asked if one.vrrp == "MASTER"]
    if asked and not masters and (owner is None or not owner.silent):
        yield down("edge", "no load balancer is VRRP master", keepalived, LOST)
    if len(masters) > 1:
        names = " and ".join(one.name for one in masters)
        yield risk("edge", f"{names} both say they are VRRP master", keepalived, LOST)
    if len(masters) == 1 and owner and masters[0].instance_id != world.edge_owner:
        what = f"{masters[0].name} is VRRP master, but {owner.name} has {world.edge_address}"
        logs = f"fab fleet.logs {masters[0].name} --unit flotilla-address"
        yield down("edge", what, logs, LOST)


def _first(world: World) -> str:
    hosts = [host for host in world.by_role("lb") if not host.silent] or world.by_role("lb")
    return hosts[0].name if hosts else "lb"


def balancers(world: World) -> Iterator[Finding]:
    """Whether each HAProxy answers and has anybody to send requests to."""
    for balancer in world.balancers:
        logs = f"fab fleet.logs {balancer.name} --unit haproxy"
        if balancer.servers is None:
            has_it = balancer.instance_id == world.edge_owner
            what = f"HAProxy on {balancer.name} does not answer: {balancer.error}"
            yield Finding(
                Severity.DOWN if has_it else Severity.RISK, balancer.name, what, logs, LOST
            )
        elif not any(server.is_serving for server in balancer.servers.values()):
            has_it = balancer.instance_id == world.edge_owner
            what = f"{balancer.name} has no server to give requests to"
            after = "fab fleet.logs app --unit app"
            yield Finding(Severity.DOWN if has_it else Severity.RISK, balancer.name, what, after)


def maintenance(world: World) -> Iterator[Finding]:
    """The maintenance page: on purpose, and nobody is served all the same."""
    asked = [one for one in world.balancers if one.servers is not None]
    views = {one.name: Kept(one.maintenance, one.maintenance) for one in asked}
    for problem in lb_maintenance.problems(views):
        yield down("edge", problem, "fab lb.maintenance --off", MAINTENANCE)


def certificates(world: World) -> Iterator[Finding]:
    """Certificates that run out, were renewed on one load balancer only, or cannot be renewed."""
    served = {one.name: one.certificates for one in world.balancers}
    yield from lb_certificate.findings(served, world.at)
    yield from lb_certificate.renewals({one.name: one.renewal for one in world.balancers})


def following(world: World) -> Iterator[Finding]:
    """Whether each load balancer follows the application hosts in EC2."""
    for one in world.balancers:
        logs = f"fab fleet.logs {one.name} --unit flotilla-discovery"
        if one.follows is None:
            continue  # its unit is told of as one that is not active
        if one.follows.age_seconds > SILENT_SECONDS:
            what = f"{one.name} looked at EC2 {one.follows.age_seconds:.0f} s ago for the last time"
            yield risk(one.name, f"{what}: hosts that come or go are not noticed", logs, UNFOLLOWED)
        elif one.follows.trouble:
            what = f"{one.name} keeps the servers it has, whoever comes or goes"
            yield risk(one.name, f"{what}: {one.follows.trouble}", logs, UNFOLLOWED)
        for sentence in one.follows.notes:
            yield note(one.name, f"{one.name}: {sentence}", logs)


def servers(world: World) -> Iterator[Finding]:
    """Application hosts that a load balancer does not send requests to."""
    views = {one.name: one.servers for one in world.balancers if one.servers is not None}
    apps = {host.name: host for host in world.by_role("app")}
    for name, host in apps.items():
        missing = [lb for lb, servers in views.items() if name not in servers]
        if missing:
            what = f"{listed(missing)} does not know {name}, so it gets no requests from there"
            logs = f"fab fleet.logs {missing[0]} --unit flotilla-discovery"
            yield risk(name, what, logs, UNFOLLOWED)
        bad = {
            lb: servers[name]
            for lb, servers in views.items()
            if name in servers and not servers[name].is_serving
        }
        if bad and not host.silent:
            words = {_status(server) for server in bad.values()}
            what = f"{name} is {listed(sorted(words))} on {listed(sorted(bad))}"
            is_out = all(one.is_out for one in bad.values())
            after = _return(world, name) if is_out else f"fab fleet.logs {name}"
            yield _unless_changing(world, risk(name, what, after, SLOW))
    for lb, servers in views.items():
        if strangers := sorted(set(servers) - set(apps) - {h.name for h in world.hosts}):
            what = f"{lb} still has {listed(strangers)}, which the fleet no longer has"
            yield note(lb, what, "fab fleet.configure --limit lb")


def _status(server: Server) -> str:
    return f"{server.status} ({server.check})" if server.check else server.status


def _unless_changing(world: World, finding: Finding) -> Finding:
    """A deploy under way has a host out of rotation, or two releases: that is how it works."""
    if not world.lock:
        return finding
    return note(finding.subject, f"{finding.what} (a change is under way)", STATUS, LOCKED)


def _is_out(world: World, name: str) -> bool:
    """Whether every load balancer that answers was told to leave the host alone."""
    views = [one.servers[name] for one in world.balancers if one.servers and name in one.servers]
    return bool(views) and all(server.is_out for server in views)


def _return(world: World, name: str) -> str:
    release = next((app.release for app in world.apps if app.name == name), None)
    return f"fab deploy.run --version {release or '<version>'} --adopt"


def apps(world: World) -> Iterator[Finding]:
    """Application hosts that cannot serve, or see no primary."""
    for app in world.apps:
        for finding in _app(app):
            is_away = _is_out(world, app.name)
            yield _unless_changing(world, finding) if is_away else finding
    yield from _proxies(world)


def _app(app: App) -> Iterator[Finding]:
    logs = f"fab fleet.logs {app.name} --unit app"
    if app.error:
        yield risk(app.name, f"{app.name}: {app.error}", f"fab fleet.logs {app.name}")
    elif not app.release:
        yield risk(app.name, f"{app.name} has no release", "fab deploy.run --version <version>")
    elif not app.is_active:
        yield risk(app.name, f"the application does not run on {app.name}", logs, SLOW)
    elif app.is_stale:
        what = f"{app.name} runs another release than {app.release}, which it should run"
        yield risk(app.name, what, f"fab deploy.run --version {app.release}")
    elif app.served and app.served != app.release:
        what = f"{app.name} answers as version {app.served} and should run {app.release}"
        yield note(app.name, what, logs)
    if app.release and app.is_active and app.ready != 200:
        answer = f"answers {app.ready}" if app.ready else "does not answer"
        what = f"the application on {app.name} cannot serve: its readiness page {answer}"
        yield risk(app.name, what, logs, SLOW)


def _proxies(world: World) -> Iterator[Finding]:
    for proxy, what, role, after, page in (
        (WRITER, "MySQL primary", "mysql", "fab mysql.status", NO_WRITES),
        (CACHE, "Redis primary", "redis", "fab fleet.logs redis", ""),
    ):
        seen = _seen(world, proxy)
        yield from _none(seen, what, role, after, page)
        for name, servers in seen.items():
            if len(servers) > 1:
                claim = f"{name} sees {len(servers)} hosts that say they are {what}"
                sentence = f"{claim}: {listed(servers)}; it writes to neither"
                yield down(role, sentence, f"fab fleet.logs {role}")
        chosen = {servers[0] for servers in seen.values() if len(servers) == 1}
        if len(chosen) > 1:
            names = listed(sorted(chosen))
            sentence = f"application hosts write to different {what} hosts: {names}"
            yield down(role, sentence, f"fab fleet.logs {role}")
    readers = _seen(world, READERS)
    yield from _none(readers, "MySQL host to read from", "mysql", "fab fleet.logs mysql", "")


def _seen(world: World, proxy: str) -> dict[str, tuple[str, ...]]:
    """By application host: the servers that its own HAProxy connects to."""
    return {
        app.name: app.proxies[proxy] for app in world.apps if app.proxies and proxy in app.proxies
    }


def _none(
    seen: Mapping[str, Sequence[str]], what: str, role: str, after: str, page: str
) -> Iterator[Finding]:
    blind = [name for name, servers in seen.items() if not servers]
    if blind:
        sentence = f"{len(blind)} of {len(seen)} application hosts reach no {what}: {listed(blind)}"
        yield down(role, sentence, after, page)


def releases(world: World) -> Iterator[Finding]:
    """Whether all run the same release."""
    runs: dict[str, list[str]] = defaultdict(list)
    for app in world.apps:
        if app.release:
            runs[app.release].append(app.name)
    if len(runs) > 1:
        ranked = sorted(runs.items(), key=lambda item: (-len(item[1]), item[0]))
        what = "; ".join(f"{release} on {listed(names)}" for release, names in ranked)
        after = f"fab deploy.run --version {ranked[0][0]}"
        sentence = f"application hosts run different releases: {what}"
        found = risk("app", sentence, after, FAILED_DEPLOY)
        yield _unless_changing(world, found)

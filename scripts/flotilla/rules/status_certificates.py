"""Certificates that hosts make for themselves: those that were not renewed, and issuers that end.

A host renews its own as long as its issuer lasts, and says nothing on the last day: all hosts of a
role have one issuer and are refused at once when it ends. So that is told of long before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from flotilla.rules.redis import ISSUER_DAYS, LATE
from flotilla.rules.status_finding import Finding, listed, note, risk
from flotilla.rules.status_world import Host, World

ENDING = "certificate-runs-out"
PROVISION = "fab fleet.provision, then fab fleet.configure"


def certificates(world: World) -> Iterator[Finding]:
    """Of every host that has one: issuers by role, then what each host has on its disk."""
    yield from _issuers(world)
    for host in world.hosts:
        tls = host.report.tls if host.report else None
        if tls is not None and tls.error:
            what = f"{host.name}: when its certificate ends is not known: {tls.error}"
            yield note(host.name, what, _logs(host), ENDING)
    yield from late(world).values()


def late(world: World) -> dict[str, Finding]:
    """Hosts by name whose certificate has ended or was not renewed in time.

    Measured by how long one is to last: the last of an issuer is shorter than that, and is late
    when it is the next one's time all the same.
    """
    found = {}
    for host in world.hosts:
        tls = host.report.tls if host.report else None
        if tls is None or tls.error:
            continue
        left = (tls.ends_at - world.at) / 3600 if tls.ends_at is not None else None
        with_issuer = tls.issuer_ends_at is not None and (tls.ends_at or 0) >= tls.issuer_ends_at
        if left is None:
            what = f"{host.name}: it has no certificate"
        elif left <= 0:
            what = f"{host.name}: its certificate has ended: clients refuse it"
        elif tls.hours is not None and left < tls.hours * LATE:
            why = "and so does its issuer" if with_issuer else "and was not renewed"
            what = f"{host.name}: its certificate ends in {left:.0f} h {why}"
        else:
            continue
        found[host.name] = risk(host.name, what, PROVISION if with_issuer else _logs(host), ENDING)
    return found


def _issuers(world: World) -> Iterator[Finding]:
    ending: dict[str, dict[str, float]] = defaultdict(dict)
    for host in world.hosts:
        tls = host.report.tls if host.report else None
        if tls is None or tls.issuer_ends_at is None:
            continue
        days = (tls.issuer_ends_at - world.at) / 86400
        if days < ISSUER_DAYS:
            ending[host.role][host.name] = days
    for role, hosts in ending.items():
        who = listed(list(hosts)) if len(hosts) <= 3 else f"{len(hosts)} {role} hosts"
        verb, days = "signs" if len(hosts) == 1 else "sign", min(hosts.values())
        end = f"ends in {days:.0f} days" if days > 0 else "has ended"
        yield risk(role, f"what {who} {verb} certificates with {end}", PROVISION, ENDING)


def _logs(host: Host) -> str:
    return f"fab fleet.logs {host.name} --unit flotilla-tls"

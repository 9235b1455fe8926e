"""Is the fleet still what a saved plan was made for? Facts then against facts now, host by host.

Facts are JSON types: ``{"fleet": str, "release": {"version", "sha256"}, "hosts": {name: {"zone",
"version", "active", "stale"}}, "balancers": {name: {server: status}}}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from flotilla.rules.deploy import Host
from flotilla.rules.rotation import Server

Facts = Mapping[str, Any]

_HOST = ("zone", "version", "active", "stale")


def facts(
    fleet: str,
    release: Mapping[str, str],
    hosts: Sequence[Host],
    balancers: Mapping[str, Mapping[str, Server]],
) -> dict[str, Any]:
    """What a plan depends on, and nothing that changes by itself."""
    return {
        "fleet": fleet,
        "release": dict(release),
        "hosts": {h.name: {key: getattr(h, key) for key in _HOST} for h in hosts},
        "balancers": {
            balancer: {name: _word(server.status) for name, server in servers.items()}
            for balancer, servers in balancers.items()
        },
    }


def drift(then: Facts, now: Facts) -> list[str]:
    """Every difference as a sentence that begins with the host's name; empty when there is none."""
    return list(
        chain(
            _others(then, now),
            _set("hosts", "host", then, now),
            _host_changes(then["hosts"], now["hosts"]),
            _set("balancers", "load balancer", then, now),
            _state_changes(then["balancers"], now["balancers"]),
        )
    )


def moved(then: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> list[str]:
    """Hosts that are in another batch than they were."""
    before = {host: number for number, batch in enumerate(then, 1) for host in batch}
    after = {host: number for number, batch in enumerate(now, 1) for host in batch}
    said = []
    for host in sorted(before.keys() | after.keys()):
        was, is_now = before.get(host), after.get(host)
        if was != is_now:
            said.append(f"{host} was {_batch(was)}, now it is {_batch(is_now)}")
    return said


def _others(then: Facts, now: Facts) -> Iterator[str]:
    if then["fleet"] != now["fleet"]:
        yield f"the plan is for the fleet {then['fleet']}, this is {now['fleet']}"
    old, new = then["release"], now["release"]
    if old["sha256"] != new["sha256"]:
        yield (
            f"release {old['version']} had the checksum {old['sha256'][:12]}, "
            f"now it has {new['sha256'][:12]}"
        )


def _set(key: str, word: str, then: Facts, now: Facts) -> Iterator[str]:
    for gone in sorted(set(then[key]) - set(now[key])):
        yield f"{gone} is gone"
    for new in sorted(set(now[key]) - set(then[key])):
        yield f"{new} is a new {word}"


def _host_changes(then: Facts, now: Facts) -> Iterator[str]:
    for name in sorted(set(then) & set(now)):
        old, new = then[name], now[name]
        if old["version"] != new["version"]:
            yield f"{name} ran {old['version'] or 'nothing'}, now {new['version'] or 'nothing'}"
        if old["zone"] != new["zone"]:
            yield f"{name} was in {old['zone']}, now in {new['zone']}"
        if old["active"] != new["active"]:
            yield f"{name}'s application {'runs now' if new['active'] else 'does not run any more'}"
        if old["stale"] != new["stale"]:
            was = "has other settings than it was started with" if new["stale"] else "was restarted"
            yield f"{name}'s application {was}"


def _state_changes(then: Facts, now: Facts) -> Iterator[str]:
    for balancer in sorted(set(then) & set(now)):
        old, new = then[balancer], now[balancer]
        for server in sorted(set(old) | set(new)):
            was, is_now = old.get(server, "absent"), new.get(server, "absent")
            if was != is_now:
                yield f"{server} was {was} on {balancer}, now {is_now}"


def _batch(number: int | None) -> str:
    return "left alone" if number is None else f"in batch {number}"


def _word(status: str) -> str:
    """``UP`` of "UP 1/2": one failed check is no other state."""
    return status.partition(" ")[0]

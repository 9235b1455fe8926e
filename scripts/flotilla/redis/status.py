"""What the Redis hosts look like, as one object: for a board, for programs, for people at night."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from flotilla.errors import FlotillaError
from flotilla.hosts.redis import read
from flotilla.hosts.ssh import Runner
from flotilla.rules.redis import Member, certificates, fullness, issuers, primary, problems
from flotilla.snapshot import Host

# A host that is being terminated is no member any more.
_GONE = frozenset({"shutting-down", "terminated"})


def status(
    runner: Runner, hosts: Iterable[Host], *, stopped: Iterable[Host] = ()
) -> dict[str, Any]:
    """``primary`` (a name or None), ``members``, ``problems`` and ``certificates`` (sentences),
    ``next``; JSON types.

    A host that cannot be asked is a member with role "silent", and a problem; so is one of
    ``stopped``, whose hosts do not run. Raises nothing.
    """
    targets = list(hosts)
    members, silent = looked(runner, targets)
    away = [host for host in stopped if host.state not in _GONE]
    silent |= {host.name: f"its host is {host.state}" for host in away}
    chosen = primary(members)
    found = problems(members, silent) if targets or away else ["the fleet has no Redis host"]
    found += fullness(members)
    return {
        "primary": chosen.name if chosen else None,
        "members": [
            *(asdict(member) | {"is_primary": member is chosen} for member in members),
            *({"name": name, "role": "silent", "why": why} for name, why in silent.items()),
        ],
        "problems": found,
        "certificates": [*certificates(members), *issuers(members)],
        "next": "fab fleet.status" if found else "",
    }


def looked(runner: Runner, hosts: list[Host]) -> tuple[list[Member], dict[str, str]]:
    """Every host that answers, and why the others do not, by name. Raises nothing."""
    members: list[Member] = []
    silent: dict[str, str] = {}

    def ask(host: Host) -> Member | FlotillaError:
        try:
            return read(runner, host)
        except FlotillaError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as pool:
        for host, answer in zip(hosts, pool.map(ask, hosts), strict=True):
            if isinstance(answer, Member):
                members.append(answer)
            else:
                silent[host.name] = answer.what.removeprefix(f"{host.name}: ")
    return members, silent

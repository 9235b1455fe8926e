"""Ansible's way to ``flotilla.rules.firewall``: the packet filter of a host, as text.

A filter, because it decides and does nothing: it runs where templates are rendered, also where one
is rendered for hosts that do not exist yet (role ``join``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import yaml

from flotilla.rules import firewall, reachability

DATA = Path(__file__).resolve().parents[2] / "scripts" / "flotilla" / "data"


def firewall_ruleset(fleet: Mapping[str, Any], groups: Iterable[str]) -> str:
    """The ruleset of a host of ``fleet`` (as in fleet.yml) that is in these ``groups``.

    Raises ValueError for a host that has none of the fleet's roles, or more than one.
    """
    roles = tuple(fleet["tiers"])
    mine = [role for role in roles if role in set(groups)]
    if len(mine) != 1:
        raise ValueError(f"a host has one role of {', '.join(roles)}, and not {mine}")
    users = _data("metadata_users.yml")
    return firewall.ruleset(
        firewall.Host(
            group=_security_groups(fleet, roles)[mine[0]],
            roles=roles,
            vpc_cidr=str(fleet["vpc_cidr"]),
            metadata_users=(
                *users["fleet"],
                *users.get(mine[0], ()),
                str(fleet["ssh"]["user"]),
            ),
        )
    )


def _security_groups(
    fleet: Mapping[str, Any], roles: tuple[str, ...]
) -> Mapping[str, reachability.Group]:
    outside = {
        "operator": _networks(fleet["ssh"]["allow_from"]),
        "clients": _networks(fleet["lb"]["allow_from"]),
        "internet": (reachability.ANYWHERE,),
    }
    table = reachability.rows(_data("reachability.yml"))
    return reachability.groups(table, roles=roles, outside=outside)


def _networks(named: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(map(str, [named] if isinstance(named, str) else named))


def _data(name: str) -> Any:
    return yaml.safe_load((DATA / name).read_text(encoding="utf-8"))


class FilterModule:
    """The filter ``flotilla_firewall``."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """By name."""
        return {"flotilla_firewall": firewall_ruleset}

"""The load balancer pair: what is wrong with it, and who may take the address over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One load balancer. ``is_fit``: its peers know it, it has servers in rotation, and it takes
    part in VRRP; ``is_owner``: EC2 says that the address is with it.
    """

    name: str
    is_fit: bool
    is_owner: bool


def problems(members: Sequence[Member]) -> list[str]:
    """Sentences, worst first."""
    found = []
    owners = [one.name for one in members if one.is_owner]
    if not owners:
        found.append("the address is with none of them")
    found += [
        f"{one.name} could not serve: HAProxy there has no server up, or keepalived takes no part"
        + (" (it has the address)" if one.is_owner else "")
        for one in sorted(members, key=lambda one: not one.is_owner)
        if not one.is_fit
    ]
    if len(members) < 2:
        found.append("nobody could take over: there is one load balancer")
    return found


@dataclass(frozen=True, slots=True)
class Move:
    """Move the address from one to whoever else is fit, by name."""

    source: str
    others: tuple[str, ...]


def move(members: Sequence[Member], source: str | None = None) -> Move | str | None:
    """The move away from ``source`` (default: who has the address); None: it is not there.

    A sentence where nobody could take over. Raises LookupError for an unknown ``source``.
    """
    known = {one.name: one for one in members}
    owner = next((one.name for one in members if one.is_owner), None)
    if source is not None and source not in known:
        raise LookupError(source)
    if owner is None:
        return "the address is with none of them: there is nobody to move it from"
    if source not in {None, owner}:
        return None
    others = tuple(one.name for one in members if one.is_fit and one.name != owner)
    if not others:
        return f"no other load balancer than {owner} could serve"
    return Move(owner, others)

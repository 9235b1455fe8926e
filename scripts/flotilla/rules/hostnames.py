"""What each instance is called, when tags may be missing, shared or wrong.

Invariants: every instance gets a name; no two get the same one; a name of the form
``<role>-<number>`` is only given to the one instance that claims it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

# An instance id is i- and 17 hex digits. Six tell 12 hosts apart; of 10,000 some share them.
SHORT = 6


class Tagged(NamedTuple):
    """What an instance says of itself."""

    instance_id: str
    role: str  # its Role tag, "" without one
    name: str  # its Name tag, "" without one
    scaled: bool  # launched by an Auto Scaling group, whose hosts may share one Name tag


class Named(NamedTuple):
    """The name given to an instance, and its number where the name has one."""

    name: str
    number: int | None


def named(
    instances: Sequence[Tagged], roles: Collection[str]
) -> tuple[dict[str, Named], list[str]]:
    """Names by instance id, and a sentence for each thing that is wrong with the tags."""
    claims = Counter(one.name for one in instances if _number(one) is not None)
    shorts = Counter(_fallback(one, SHORT) for one in instances)
    names: dict[str, Named] = {}
    for one in instances:
        number = _number(one)
        if number is not None and claims[one.name] == 1:
            names[one.instance_id] = Named(one.name, number)
        else:
            length = SHORT if shorts[_fallback(one, SHORT)] == 1 else len(one.instance_id)
            names[one.instance_id] = Named(_fallback(one, length), None)
    return names, [*_duplicates(instances, claims), *_misplaced(instances, roles)]


def _number(one: Tagged) -> int | None:
    found = re.fullmatch(rf"{re.escape(one.role)}-([1-9]\d*)", one.name) if one.role else None
    return int(found.group(1)) if found else None


def _fallback(one: Tagged, length: int) -> str:
    return f"{one.role or 'unknown'}-{one.instance_id.removeprefix('i-')[-length:]}"


def _duplicates(instances: Sequence[Tagged], claims: Counter[str]) -> list[str]:
    problems = []
    for name in sorted(name for name, times in claims.items() if times > 1):
        owners = [one for one in instances if one.name == name]
        if not all(one.scaled for one in owners):
            ids = ", ".join(sorted(one.instance_id for one in owners))
            problems.append(
                f"{len(owners)} instances have the Name tag {name}: {ids}; "
                "terminate or rename all but one"
            )
    return problems


def _misplaced(instances: Sequence[Tagged], roles: Collection[str]) -> list[str]:
    return [
        f"{one.instance_id} has the Role tag {one.role!r}; roles are {', '.join(roles)}"
        for one in instances
        if one.role not in roles
    ]

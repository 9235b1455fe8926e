"""What roles of hosts did at AWS, by the lab's record, against what their policies permit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

# Names of services as requests are signed for, where policies have another one.
_SERVICES = {"monitoring": "cloudwatch"}
_REFUSED = (401, 403)
# A parameter that a test asks for as a role that may not have it, to be refused.
ASKED_FOR = ("app", "mysql/root_password")


class Used(NamedTuple):
    """A role used an action."""

    role: str
    action: str


def action(service: str, called: str) -> str:
    """The action of a policy that a recorded call stands for.

    S3 is recorded as method and path; a path with no key is the bucket.
    """
    if service != "s3":
        return f"{_SERVICES.get(service, service)}:{called}"
    method, _, path = called.partition(" ")
    _, _, key = unquote(path).lstrip("/").partition("/")
    if method in ("GET", "HEAD"):
        return "s3:GetObject" if key else "s3:ListBucket"
    if method in ("PUT", "POST") and key:
        return "s3:PutObject"
    return f"s3:{method} of {'an object' if key else 'a bucket'}"


def calls(record: Iterable[Mapping[str, Any]], prefix: str) -> Iterable[tuple[Used, int]]:
    """Every call of a role of the fleet ``prefix`` (``<fleet>-<env>``), and its status.

    A refusal is 403, which SSM calls 400; the one that a test provokes is left out.
    """
    for one in record:
        name = re.fullmatch(rf"{re.escape(prefix)}-([a-z]+)", one.get("role") or "")
        if name is None:
            continue
        used = Used(name[1], action(one["service"], one["action"]))
        denied = one.get("error") == "AccessDeniedException"
        if not denied:
            yield used, int(one["status"] or 0)
        elif (used.role, "/".join(one["resource"].split("/")[-2:])) != ASKED_FOR:
            yield used, 403


def permitted(policies: Mapping[str, Mapping[str, Any]]) -> set[Used]:
    """Every action of every role's policy."""
    return {
        Used(role, one)
        for role, document in policies.items()
        for statement in document["Statement"]
        for one in _list(statement["Action"])
    }


def unused(may: Iterable[Used], did: Iterable[Used], excused: Iterable[Used]) -> list[str]:
    """Rights that nobody used and nobody gave a reason for; and reasons for what was used."""
    may, did, excused = set(may), set(did), set(excused)
    return (
        [f"{one.role} may {one.action} and never did" for one in sorted(may - did - excused)]
        + [f"{one.role} did {one.action}: no exception needed" for one in sorted(excused & did)]
        + [f"{one.role} has no right {one.action}: no exception" for one in sorted(excused - may)]
    )


def refusals(found: Iterable[tuple[Used, int]], may: Iterable[Used]) -> list[str]:
    """Calls that were refused, and those that AWS would refuse: no statement has their action."""
    may, found = set(may), set(found)
    return sorted(
        {f"{one.role} was refused {one.action}" for one, status in found if status in _REFUSED}
        | {f"{one.role} did {one.action}, which AWS refuses" for one, _ in found if one not in may}
    )


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)

"""What a host's role may not do with parameters, refused as AWS refuses it.

moto lets any key do anything. Of all calls these are looked at, because a path of another role is
what keeps its secrets from this one: the role's own policies, as they are at the time of the call,
decide. Whoever has no role of an instance is the operator, and may.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ERROR = "AccessDeniedException"


def denied(
    role: str, action: str, region: str, body: bytes, *, account: str, backend: Callable[[str], Any]
) -> str:
    """The parameter (an ARN) for which a role is refused a call of SSM; empty when it may."""
    from moto.iam.access_control import (  # noqa: PLC0415  moto takes seconds to import
        IAMPolicy,
        PermissionResult,
    )

    held = [one.policies.values() for one in backend("iam").get_roles() if one.name == role]
    policies = [IAMPolicy(text) for texts in held for text in texts]
    for resource in _asked(body, f"arn:aws:ssm:{region}:{account}:parameter"):
        said = [one.is_action_permitted(f"ssm:{action}", resource) for one in policies]
        if PermissionResult.PERMITTED not in said or PermissionResult.DENIED in said:
            return resource
    return ""


def answer(role: str, action: str, resource: str) -> dict[str, str]:
    """SSM's words for it."""
    account = resource.split(":")[4]
    return {
        "__type": ERROR,
        "message": f"User: arn:aws:sts::{account}:assumed-role/{role} is not authorized to perform:"
        f" ssm:{action} on resource: {resource}",
    }


def _asked(body: bytes, arn: str) -> Iterator[str]:
    asked: Mapping[str, Any] = json.loads(body or b"{}")
    names = [*asked.get("Names", []), asked.get("Name"), asked.get("Path")]
    for name in filter(None, names):
        if name.startswith("arn:"):
            yield name
        else:
            # A version or a label after a colon is no part of what policies name.
            yield f"{arn}/{name.partition(':')[0].strip('/')}"

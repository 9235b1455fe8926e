"""Fill in policy documents, and say where one grants more than it needs.

A document is IAM JSON with ``<placeholder>`` in its strings. Nothing here talks to AWS. Invariant:
a rendered document has no placeholder left, so a forgotten value can never widen a resource.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Document = dict[str, Any]
PLACEHOLDER = re.compile(r"<([a-z_]+)>")
VERSION = "2012-10-17"

# Describe calls of EC2 and Auto Scaling and PutMetricData cannot be limited to a resource: AWS
# accepts only "*" for them.
NO_RESOURCE = ("ec2:Describe*", "autoscaling:Describe*", "cloudwatch:PutMetricData")


def render(document: Mapping[str, Any], values: Mapping[str, str]) -> Document:
    """The document with every ``<placeholder>`` replaced; ``ValueError`` for one that ``values``
    does not have.
    """
    filled: Document = _fill(document, values)
    return filled


def merge(documents: Iterable[Mapping[str, Any]]) -> Document:
    """One document with the statements of all, in order."""
    return {
        "Version": VERSION,
        "Statement": [statement for document in documents for statement in document["Statement"]],
    }


def problems(document: Mapping[str, Any]) -> list[str]:
    """Where a rendered document is wider than a host needs, one sentence each; empty when there is
    nothing to say.
    """
    found = []
    for statement in document["Statement"]:
        name = statement.get("Sid", "a statement without Sid")
        actions = _list(statement.get("Action"))
        if statement.get("Effect") != "Allow" or {"NotAction", "NotResource"} & set(statement):
            found.append(f"{name}: only plain Allow statements; the rest is refused by default")
        found += [
            f"{name}: {action} grants a whole service"
            for action in actions
            if _whole_service(action)
        ]
        if "*" in _list(statement.get("Resource")):
            found += [
                f"{name}: {action} on every resource"
                for action in actions
                if not any(fnmatch.fnmatch(action, pattern) for pattern in NO_RESOURCE)
            ]
    return found


def allows(
    document: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]
) -> bool:
    """Whether a document of Allow statements lets ``action`` happen to ``resource`` (an ARN, or
    ``*``).

    ``context`` holds the condition keys of the request. Knows the operators our documents use:
    StringEquals, StringLike and their ForAllValues forms; any other raises ``ValueError`` rather
    than guessing.
    """
    return any(
        _matches(_list(statement["Action"]), action, ignore_case=True)
        and _matches(_list(statement["Resource"]), resource)
        and _holds(statement.get("Condition", {}), context)
        for statement in document["Statement"]
    )


def _holds(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, wanted in conditions.items():
        base = operator.removeprefix("ForAllValues:")
        if base not in {"StringEquals", "StringLike"}:
            raise ValueError(f"condition operator {operator} is not one this evaluator knows")
        for key, values in wanted.items():
            if key not in context:  # ForAllValues holds for a key that the request does not have
                if base == operator:
                    return False
                continue
            if base == "StringEquals" and context[key] not in _list(values):
                return False
            if base == "StringLike" and not _matches(_list(values), context[key]):
                return False
    return True


def _matches(patterns: Sequence[str], value: str, *, ignore_case: bool = False) -> bool:
    if ignore_case:
        patterns, value = [pattern.lower() for pattern in patterns], value.lower()
    return any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns)


def _whole_service(action: str) -> bool:
    return action == "*" or action.endswith(":*")


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _fill(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: _value(match.group(1), values), value)
    if isinstance(value, Mapping):
        return {key: _fill(inner, values) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_fill(inner, values) for inner in value]
    return value


def _value(name: str, values: Mapping[str, str]) -> str:
    if not values.get(name):
        raise ValueError(f"the policy needs <{name}>; known: {', '.join(sorted(values))}")
    return values[name]

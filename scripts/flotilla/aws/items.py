"""A DynamoDB table as everybody here uses it: an item by its key, changed on a condition.

Values are as DynamoDB writes them: ``{"S": "text"}``, ``{"N": "1"}``. Nothing here needs boto3, so
that a database host can do without: ``flotilla.aws.dynamo`` reaches a table with it,
``flotilla.aws.lean`` without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flotilla.errors import Refused

Value = Mapping[str, Any]
Item = Mapping[str, Value]


class ChangedError(Exception):
    """The item was not as the condition said, and is as it was."""


@dataclass(frozen=True, slots=True)
class Change:
    """Attributes to set and to remove, if each attribute in ``when`` has that value (None: is not
    there).
    """

    sets: Mapping[str, Value]
    when: Mapping[str, Value | None]
    removes: tuple[str, ...] = field(default=())

    def request(self) -> dict[str, Any]:
        """The arguments of UpdateItem that say so."""
        names = list(dict.fromkeys([*self.sets, *self.removes, *self.when]))
        alias = {name: f"#n{n}" for n, name in enumerate(names)}
        values: dict[str, Value] = {f":s{n}": v for n, v in enumerate(self.sets.values())}
        parts = []
        if self.sets:
            parts.append("SET " + ", ".join(f"{alias[a]} = :s{n}" for n, a in enumerate(self.sets)))
        if self.removes:
            parts.append("REMOVE " + ", ".join(alias[name] for name in self.removes))
        conditions = []
        for n, (name, wanted) in enumerate(self.when.items()):
            if wanted is None:
                conditions.append(f"attribute_not_exists({alias[name]})")
            else:
                conditions.append(f"{alias[name]} = :w{n}")
                values[f":w{n}"] = wanted
        request: dict[str, Any] = {
            "UpdateExpression": " ".join(parts),
            "ExpressionAttributeNames": {short: name for name, short in alias.items()},
        }
        if values:
            request["ExpressionAttributeValues"] = values
        if conditions:
            request["ConditionExpression"] = " AND ".join(conditions)
        return request


class Table(Protocol):
    """One table. ``key_name`` is its hash key; ``term_name`` the attribute a lease's term is in;
    ``hint`` the command to type next when it does not answer.
    """

    name: str
    key_name: str
    term_name: str
    hint: str

    def get(self, key: str) -> Item | None:
        """The item now, by a consistent read; None when there is none.

        Raises Refused when there is no such table, Unreachable when the API is down.
        """

    def update(self, key: str, change: Change) -> None:
        """Change one item. Raises ChangedError when the condition does not hold."""


def no_table(name: str) -> Refused:
    """The error for a fleet that lacks one of its tables."""
    return Refused(
        f"there is no table {name}",
        "leases and the record of who is primary are kept in tables; without them nobody may act",
        "Nothing was changed",
        "fab fleet.provision",
    )

"""The tables of a fleet, reached with boto3 as the operator's account."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.items import Change, ChangedError, Item, no_table
from flotilla.aws.session import client, described
from flotilla.settings import Settings


class DynamoTable:
    """``flotilla.aws.items.Table`` over boto3. Safe to use from threads."""

    def __init__(self, settings: Settings, name: str, key_name: str, term_name: str) -> None:
        self._settings = settings
        self.name = settings.name_of(name)
        self.key_name = key_name
        self.term_name = term_name
        self.hint = settings.aws.hint

    def get(self, key: str) -> Item | None:
        """See ``Table``."""
        answer = self._call("get_item", key, ConsistentRead=True)
        return answer.get("Item")

    def update(self, key: str, change: Change) -> None:
        """See ``Table``."""
        self._call("update_item", key, **change.request())

    def _call(self, action: str, key: str, **request: Any) -> dict[str, Any]:
        verb = "read" if action == "get_item" else "change"
        with described(self._settings, f"{verb} {key} in table {self.name}"):
            dynamodb = client(self._settings, "dynamodb")
            try:
                answer: dict[str, Any] = getattr(dynamodb, action)(
                    TableName=self.name, Key={self.key_name: {"S": key}}, **request
                )
            except ClientError as error:
                if code(error) == "ConditionalCheckFailedException":
                    raise ChangedError(key) from error
                if code(error) == "ResourceNotFoundException":
                    raise no_table(self.name) from error
                raise
        return answer


def locks(settings: Settings) -> DynamoTable:
    """Where runs that change the fleet hold their leases."""
    return DynamoTable(settings, "locks", "id", "term")


def clusters(settings: Settings) -> DynamoTable:
    """The records of who is primary; the lease on a cluster is part of its item."""
    return DynamoTable(settings, "clusters", "cluster", "lease_term")

"""The record of who is primary: one DynamoDB item a cluster, changed by conditional writes only.

Invariants: the term grows by exactly one with every change of primary; a write carries the fencing
number of the lease it was made under, and never replaces one made under a later lease.
"""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.errors import Refused
from flotilla.rules.mysql import FIRST_TERM
from flotilla.rules.mysql_topology import Record
from flotilla.settings import Settings

CLUSTER = "mysql"


class Records:
    """The item of one fleet's cluster. Safe to use from threads."""

    def __init__(self, settings: Settings, cluster: str = CLUSTER) -> None:
        self._settings = settings
        self._table = settings.name_of("clusters")
        self._cluster = cluster

    def read(self) -> Record | None:
        """The record now, by a consistent read; None when there never was one.

        Raises Refused for an item that is not a record, Unreachable when the API is down.
        """
        with described(self._settings, f"read who is primary of {self._cluster}"):
            try:
                answer = client(self._settings, "dynamodb").get_item(
                    TableName=self._table,
                    Key={"cluster": {"S": self._cluster}},
                    ConsistentRead=True,
                )
            except ClientError as error:
                if code(error) != "ResourceNotFoundException":
                    raise
                raise self._no_table() from error
        return self._parsed(answer["Item"]) if "Item" in answer else None

    def write(self, record: Record, *, fence: int) -> None:
        """Make this the record: the first of all, or the successor of the term before it.

        Returns also when an earlier try had already written it. Raises Refused, with the record as
        it is, when somebody else changed it.
        """
        with described(self._settings, f"record who is primary of {self._cluster}"):
            try:
                client(self._settings, "dynamodb").put_item(
                    TableName=self._table,
                    Item={
                        "cluster": {"S": self._cluster},
                        "term": {"N": str(record.term)},
                        "primary_instance_id": {"S": record.instance_id},
                        "primary_uuid": {"S": record.uuid},
                        "fence": {"N": str(fence)},
                    },
                    **_only_after(record.term, fence),
                )
            except ClientError as error:
                if code(error) != "ConditionalCheckFailedException":
                    raise
            else:
                return
        found = self.read()
        if found != record:
            raise Refused(
                f"the record of {self._cluster} is {found}, so {record} was not written",
                "somebody else changed the primary, or holds a later lease",
                "No role was changed after that",
                "fab mysql.status",
            )

    def _no_table(self) -> Refused:
        return Refused(
            f"there is no table {self._table}",
            "it holds the record of who is primary; without it nobody may be made one",
            "Nothing was changed",
            "fab fleet.provision",
        )

    def _parsed(self, item: dict[str, Any]) -> Record:
        try:
            return Record(
                term=int(item["term"]["N"]),
                instance_id=item["primary_instance_id"]["S"],
                uuid=item["primary_uuid"]["S"],
            )
        except (KeyError, ValueError) as error:
            raise Refused(
                f"the record of {self._cluster} in table {self._table} cannot be read: {error!r}",
                "without it nobody knows who may take writes",
                "Nothing was changed",
                "fab mysql.status",
            ) from error


def _only_after(term: int, fence: int) -> dict[str, Any]:
    """The condition under which ``term`` may be written, in DynamoDB's words."""
    names = {"#t": "term"}
    if term == FIRST_TERM:
        return {
            "ConditionExpression": "attribute_not_exists(#t)",
            "ExpressionAttributeNames": names,
        }
    return {
        "ConditionExpression": "#t = :before AND fence <= :fence",
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": {":before": {"N": str(term - 1)}, ":fence": {"N": str(fence)}},
    }

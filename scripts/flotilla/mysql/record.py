"""The record of who is primary: one DynamoDB item a cluster, changed by conditional writes only.

The lease of whoever changes the cluster is part of the same item. Invariants: the term grows by
exactly one with every change of primary; who is primary is written only under the lease that is
current in that very moment, so a holder who slept through its expiry writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from flotilla.aws import lease
from flotilla.aws.items import Change, ChangedError, Item, Table, Value
from flotilla.errors import Refused
from flotilla.rules.mysql import FIRST_TERM
from flotilla.rules.mysql_record import Failover, Pause, State
from flotilla.rules.mysql_topology import Record

CLUSTER = "mysql"
# Enough to judge whether a cluster flaps, and to answer "what happened this week".
FAILOVERS_KEPT = 20


class Records:
    """The item of one cluster. Safe to use from threads when the table is."""

    def __init__(self, table: Table, cluster: str = CLUSTER) -> None:
        self.table = table
        self.cluster = cluster

    def read(self) -> Record | None:
        """Who is primary, by a consistent read; None when there never was a record.

        Raises Refused for an item that is not a record, Unreachable when the API is down.
        """
        return self.state().record

    def state(self) -> State:
        """All of the item, by a consistent read; an empty State where there is none.

        Raises as ``read``.
        """
        item = self.table.get(self.cluster)
        return self._parsed(item) if item else State()

    def write(self, record: Record, *, fence: int, past: Mapping[str, str] | None = None) -> None:
        """Make this the record: the first of all, or the successor of the term before it.

        ``fence`` is the term of the lease it is written under. ``past`` adds former primaries and
        what was known of them, see ``State``. Returns also when an earlier try had already written
        it. Raises Refused, with the record as it is, when somebody else changed it or took the
        lease.
        """
        before = None if record.term == FIRST_TERM else {"N": str(record.term - 1)}
        sets: dict[str, Value] = {
            "term": {"N": str(record.term)},
            "primary_instance_id": {"S": record.instance_id},
            "primary_uuid": {"S": record.uuid},
        }
        if past:
            sets["past"] = _text({**self.state().past, **past})
        when = {"term": before, self.table.term_name: {"N": str(fence)}}
        try:
            self.table.update(self.cluster, Change(sets, when))
        except ChangedError:
            pass
        else:
            return
        found = self.read()
        if found != record:
            raise Refused(
                f"the record of {self.cluster} is {found}, so {record} was not written",
                "somebody else changed the primary, or took the lease",
                "No role was changed after that",
                "fab mysql.status",
            )

    def remember(self, failover: Failover) -> None:
        """Add to the history, or replace the entry of the same term. The newest few are kept."""
        item, failovers = self._failovers()
        kept = [one for one in failovers if one.term != failover.term]
        newest = sorted([failover, *kept], key=lambda one: -one.term)[:FAILOVERS_KEPT]
        self._set(item, "failovers", _text([asdict(one) for one in newest]))

    def acknowledge(self, *, now: float) -> tuple[Failover, ...]:
        """A human has seen every failover until now; those that nobody had seen before."""
        item, failovers = self._failovers()
        fresh = tuple(one for one in failovers if not one.acknowledged_at)
        if fresh:
            seen = [replace(one, acknowledged_at=one.acknowledged_at or now) for one in failovers]
            self._set(item, "failovers", _text([asdict(one) for one in seen]))
        return fresh

    def pause(self, pause: Pause | None) -> None:
        """Nothing happens by itself until ``pause.until``; with None, things happen again."""
        item = self._item()
        self._set(item, "paused", _text(asdict(pause) if pause else None))

    def _set(self, item: Item, name: str, value: Value) -> None:
        """Change one attribute that may be written without the lease, if nobody else just did."""
        try:
            self.table.update(self.cluster, Change({name: value}, {name: item.get(name)}))
        except ChangedError:
            raise Refused(
                f"somebody else changed {name!r} of cluster {self.cluster} in this moment",
                untouched="Nothing was changed",
                next="the same command again",
            ) from None

    def _item(self) -> Item:
        item = self.table.get(self.cluster)
        if item is None:
            raise Refused(
                f"there is no record of cluster {self.cluster} in table {self.table.name}",
                untouched="Nothing was changed",
                next="fab mysql.ensure",
            )
        return item

    def _failovers(self) -> tuple[Item, tuple[Failover, ...]]:
        item = self._item()
        return item, self._parsed(item).failovers

    def _parsed(self, item: Item) -> State:
        try:
            return _state(self.table, item)
        except (KeyError, ValueError, TypeError) as error:
            raise Refused(
                f"the record of {self.cluster} in table {self.table.name} cannot be read:"
                f" {error!r}",
                "without it nobody knows who may take writes",
                "Nothing was changed",
                "fab mysql.status",
            ) from error


def _state(table: Table, item: Item) -> State:
    # Whoever takes the lease before there is a primary makes the item.
    has_record = bool({"term", "primary_instance_id", "primary_uuid"} & item.keys())
    paused = _json(item, "paused")
    return State(
        record=_record(item) if has_record else None,
        lease=lease.parsed(table, item),
        paused=Pause(**paused) if paused else None,
        failovers=tuple(Failover(**one) for one in _json(item, "failovers") or ()),
        past=dict(_json(item, "past") or {}),
    )


def _record(item: Item) -> Record:
    return Record(
        term=int(item["term"]["N"]),
        instance_id=item["primary_instance_id"]["S"],
        uuid=item["primary_uuid"]["S"],
    )


def _json(item: Item, name: str) -> Any:
    return json.loads(item[name]["S"]) if name in item else None


def _text(value: Any) -> Value:
    return {"S": json.dumps(value, sort_keys=True)}

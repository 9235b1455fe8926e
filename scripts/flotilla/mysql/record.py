"""The record of who is primary: one DynamoDB item a cluster, changed by conditional writes only.

The lease of whoever changes the cluster is part of the same item. Invariants: the term grows by
exactly one with every change of primary; who is primary and who is barred are written only under
the lease that is current in that very moment, so a holder who slept through its expiry writes
nothing.
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
from flotilla.rules.mysql_state import Claim, Past, Pause, State
from flotilla.rules.mysql_topology import Record

CLUSTER = "mysql"
# Enough to judge whether a cluster flaps, and to answer "what happened this week".
PAST_KEPT = 20


class Records:
    """The item of one cluster. Safe to use from threads when the table is."""

    def __init__(self, table: Table, cluster: str = CLUSTER) -> None:
        self.table = table
        self.cluster = cluster

    def read(self) -> Record | None:
        """Who is primary, by a consistent read; None when there never was a record.

        Raises Refused for an item that is not a record, Unreachable when the API is down.
        """
        state = self.state()
        return state.record if state else None

    def state(self) -> State | None:
        """All of the item, by a consistent read; None when there never was a record.

        A claim stays readable after its time is over. Raises as ``read``.
        """
        item = self.table.get(self.cluster)
        # Whoever takes the lease before there is a primary makes the item.
        if not item or not {"term", "primary_instance_id", "primary_uuid"} & item.keys():
            return None
        return self._parsed(item)

    def write(
        self,
        record: Record,
        *,
        fence: int,
        replaces: int | None = None,
        barred: Mapping[str, str] | None = None,
        baseline: str | None = None,
    ) -> None:
        """Make this the record: the first of all, or the successor of the term before it.

        ``replaces`` is the term of the record that is there, 0 for none, where terms are left out
        in between: those of a record that was lost.
        ``fence`` is the term of the lease it is written under. ``barred`` and ``baseline``, see
        ``State``, change with it where they are given. Returns also when an earlier try had already
        written it. Raises Refused, with the record as it is, when somebody else changed it or took
        the lease.
        """
        there = record.term - 1 if replaces is None else replaces
        before = None if there < FIRST_TERM else {"N": str(there)}
        sets: dict[str, Value] = {
            "term": {"N": str(record.term)},
            "primary_instance_id": {"S": record.instance_id},
            "primary_uuid": {"S": record.uuid},
        }
        if barred is not None:
            sets["barred"] = _text(dict(barred))
        if baseline is not None:
            sets["baseline"] = {"S": baseline}
        try:
            self.table.update(self.cluster, Change(sets, {"term": before, **self._under(fence)}))
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

    def bar(self, barred: Mapping[str, str], *, term: int, fence: int) -> None:
        """These members, instance id to why, must not acknowledge; all others may.

        Raises Refused unless the term is still the same and the lease still ours.
        """
        when = {"term": {"N": str(term)}, **self._under(fence)}
        try:
            self.table.update(self.cluster, Change({"barred": _text(dict(barred))}, when))
        except ChangedError:
            raise Refused(
                f"who is barred from cluster {self.cluster} was not written",
                f"its term is not {term} any more, or somebody else took the lease",
                "No member was told anything after that",
                "fab mysql.status",
            ) from None

    def remember(self, event: Past) -> None:
        """Add a failover to the history, or replace the entry of the same term."""
        item, past = self._past()
        kept = [one for one in past if one.term != event.term]
        newest = sorted([*kept, event], key=lambda one: one.term)[-PAST_KEPT:]
        self._set(item, "past", _text([asdict(one) for one in newest]))

    def acknowledge(self) -> tuple[Past, ...]:
        """A human has seen every failover until now; those that nobody had seen before."""
        item, past = self._past()
        fresh = tuple(one for one in past if not one.acknowledged)
        if fresh:
            seen = [asdict(replace(one, acknowledged=True)) for one in past]
            self._set(item, "past", _text(seen))
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

    def _past(self) -> tuple[Item, tuple[Past, ...]]:
        item = self._item()
        return item, self._parsed(item).past

    def _under(self, fence: int) -> dict[str, Value]:
        return {self.table.term_name: {"N": str(fence)}}

    def _parsed(self, item: Item) -> State:
        try:
            return _state(self.table, item)
        except (KeyError, ValueError, TypeError) as error:
            found = ", ".join(f"{name} {item.get(name)}" for name in _WHO)
            raise Refused(
                f"the record of {self.cluster} in table {self.table.name} cannot be read:"
                f" {error!r} in {found}",
                "without it nobody knows who may take writes",
                "Nothing was changed",
                "fab mysql.status",
            ) from error


_WHO = ("term", "primary_instance_id", "primary_uuid")


def _state(table: Table, item: Item) -> State:
    held = lease.parsed(table, item)
    paused = _json(item, "paused")
    return State(
        record=Record(
            term=int(item["term"]["N"]),
            instance_id=item["primary_instance_id"]["S"],
            uuid=item["primary_uuid"]["S"],
        ),
        fence=held.term if held else 0,
        claim=Claim(held.holder, held.term, held.expires_at, held.reason) if held else None,
        paused=Pause(**paused) if paused else None,
        barred=dict(_json(item, "barred") or {}),
        baseline=item["baseline"]["S"] if "baseline" in item else "",
        past=tuple(Past(**one) for one in _json(item, "past") or ()),
    )


def _json(item: Item, name: str) -> Any:
    return json.loads(item[name]["S"]) if name in item else None


def _text(value: Any) -> Value:
    return {"S": json.dumps(value, sort_keys=True)}

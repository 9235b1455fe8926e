"""A lease with a fencing token, in one DynamoDB item: who may act now, and since which term.

``decide`` is the whole rule, without I/O. The edge writes what it decided on condition that the
item is still the one it decided about, so of two callers one wins and the other sees ``Held``.

Invariants: the term grows by one with every new holder and never shrinks (an item is emptied, never
deleted); a holder renews or releases its own term only. Whoever acts under a lease passes the term
along, and the receiver refuses a smaller one than it has seen: that is what stops a holder who
slept through its expiry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from botocore.exceptions import ClientError

from flotilla.aws.session import client, described
from flotilla.errors import Refused
from flotilla.settings import Settings

# Clocks of operators differ; nobody takes over before a lease is this long past its end.
SKEW_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The item as it is. ``holder`` "" means free. Times are seconds since the epoch."""

    key: str
    term: int
    holder: str
    reason: str
    acquired_at: float
    expires_at: float

    def is_free(self, now: float) -> bool:
        """Whether anybody may take it: released, or its time and the clocks' skew are over."""
        return not self.holder or now > self.expires_at + SKEW_SECONDS


class Held(Refused):
    """Somebody else holds the lease, or ours was taken over; ``lease`` is what was found."""

    def __init__(self, lease: Lease, what: str, next: str = "") -> None:  # noqa: A002
        super().__init__(
            what,
            why=f"it is held for: {lease.reason}" if lease.holder else "",
            untouched="Nothing was changed",
            next=next,
        )
        self.lease = lease


Action = Literal["acquire", "renew", "release", "take over"]


def decide(
    found: Lease | None,
    action: Action,
    mine: Lease,
    *,
    now: float,
) -> Lease | str:
    """The item to write, or the reason why not.

    ``mine`` carries key, holder, reason and the wanted ``expires_at``; for renew and release also
    the term that was acquired. Only "take over" ignores a holder whose time is not up.
    """
    if action in {"renew", "release"}:
        if found is None or (found.holder, found.term) != (mine.holder, mine.term):
            return _lost(mine, found)
        if action == "release":
            return replace(found, holder="", expires_at=now)
        return replace(found, expires_at=max(found.expires_at, mine.expires_at))
    if action == "acquire" and found is not None and not found.is_free(now):
        return f"{mine.key} is taken: {_who(found)}"
    term = (found.term if found else 0) + 1
    return replace(mine, term=term, acquired_at=now)


def lost(mine: Lease, found: Lease | None) -> Held:
    """The error for a holder that reads a lease and finds it is not its own any more."""
    return Held(found or mine, _lost(mine, found))


def read(settings: Settings, table: str, key: str) -> Lease | None:
    """The lease now, None when nobody ever held it. A consistent read."""
    with described(settings, f"read lease {key}"):
        answer = client(settings, "dynamodb").get_item(
            TableName=table, Key={"id": {"S": key}}, ConsistentRead=True
        )
    return _lease(answer["Item"]) if "Item" in answer else None


def acquire(
    settings: Settings,
    table: str,
    key: str,
    *,
    holder: str,
    reason: str,
    seconds: float,
    now: float,
    take_over: bool = False,
) -> Lease:
    """Take a free lease until ``now + seconds``; the answer's ``term`` is the fencing token.

    ``holder`` must be unique to this run (user, machine, process), not only to the operator.
    ``take_over`` takes it from a holder whose time is not up: for an operator who knows that the
    holder is gone. Raises Held naming who has it, Unreachable when the API is down.
    """
    mine = Lease(key, 0, holder, reason, now, now + seconds)
    return _write(settings, table, "take over" if take_over else "acquire", mine, now=now)


def renew(settings: Settings, table: str, lease: Lease, *, seconds: float, now: float) -> Lease:
    """Extend a lease we hold to ``now + seconds``. Raises Held when it is not ours any more."""
    return _write(settings, table, "renew", replace(lease, expires_at=now + seconds), now=now)


def release(settings: Settings, table: str, lease: Lease, *, now: float) -> None:
    """Give a lease back; its term stays. Raises Held when it is not ours any more."""
    _write(settings, table, "release", lease, now=now)


def _write(settings: Settings, table: str, action: Action, mine: Lease, *, now: float) -> Lease:
    found = read(settings, table, mine.key)
    wanted = decide(found, action, mine, now=now)
    if isinstance(wanted, str):
        raise Held(found or mine, wanted, settings.aws.hint if found is None else "")
    with described(settings, f"{action} lease {mine.key}"):
        try:
            client(settings, "dynamodb").put_item(
                TableName=table, Item=_item(wanted), **_unchanged(found)
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
        else:
            return wanted
    # A lost answer looks the same: the retry inside boto3 met our own write.
    after = read(settings, table, mine.key)
    if after == wanted:
        return wanted
    raise Held(after or mine, f"{mine.key} was taken in this moment: {_who(after)}")


def _unchanged(found: Lease | None) -> dict[str, Any]:
    if found is None:
        return {"ConditionExpression": "attribute_not_exists(id)"}
    return {
        "ConditionExpression": "#t = :t AND holder = :h AND expires_at = :e",
        "ExpressionAttributeNames": {"#t": "term"},
        "ExpressionAttributeValues": {
            ":t": {"N": str(found.term)},
            ":h": {"S": found.holder},
            ":e": {"N": repr(found.expires_at)},
        },
    }


def _item(lease: Lease) -> dict[str, Any]:
    return {
        "id": {"S": lease.key},
        "term": {"N": str(lease.term)},
        "holder": {"S": lease.holder},
        "reason": {"S": lease.reason},
        "acquired_at": {"N": repr(lease.acquired_at)},
        "expires_at": {"N": repr(lease.expires_at)},
    }


def _lease(item: Mapping[str, Any]) -> Lease:
    return Lease(
        key=item["id"]["S"],
        term=int(item["term"]["N"]),
        holder=item["holder"]["S"],
        reason=item["reason"]["S"],
        acquired_at=float(item["acquired_at"]["N"]),
        expires_at=float(item["expires_at"]["N"]),
    )


def _lost(mine: Lease, found: Lease | None) -> str:
    return f"{mine.holder} no longer holds {mine.key} (term {mine.term}): {_who(found)}"


def _who(lease: Lease | None) -> str:
    if lease is None:
        return "nobody ever held it"
    if not lease.holder:
        return f"it is free since term {lease.term}"
    since = datetime.fromtimestamp(lease.acquired_at, UTC)
    until = datetime.fromtimestamp(lease.expires_at, UTC)
    return (
        f"held by {lease.holder} in term {lease.term} since {since:%Y-%m-%d %H:%M:%S} UTC, until "
        f"{until:%Y-%m-%d %H:%M:%S} UTC unless it is renewed"
    )

"""A lease in one DynamoDB item, as ``flotilla.rules.lease`` decides it.

Of two callers one wins and the other sees ``Held``. The item may hold more than the lease: only its
own attributes are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flotilla.aws.items import Change, ChangedError, Item, Table, Value
from flotilla.errors import Refused
from flotilla.rules.lease import SKEW_SECONDS, Action, Lease, decide, who
from flotilla.rules.lease import lost as lost_text

__all__ = ["SKEW_SECONDS", "Held", "Lease", "acquire", "decide", "read", "release", "renew"]


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


def lost(mine: Lease, found: Lease | None) -> Held:
    """The error for a holder that reads a lease and finds it is not its own any more."""
    return Held(found or mine, lost_text(mine, found))


def read(table: Table, key: str) -> Lease | None:
    """The lease now, None when nobody ever held it. A consistent read."""
    item = table.get(key)
    return parsed(table, item) if item else None


def acquire(
    table: Table,
    key: str,
    *,
    holder: str,
    reason: str,
    seconds: float,
    now: float,
    take_over: bool = False,
    when: Mapping[str, Value] | None = None,
) -> Lease:
    """Take a free lease until ``now + seconds``; the answer's ``term`` is the fencing token.

    ``holder`` must be unique to this run (user, machine, process), not only to the operator.
    ``take_over`` takes it from a holder whose time is not up: for an operator who knows that the
    holder is gone. ``when`` names further attributes of the item and the values they must have.
    Raises Held naming who has it, Unreachable when the API is down.
    """
    mine = Lease(key, 0, holder, reason, now, now + seconds)
    return _write(table, "take over" if take_over else "acquire", mine, now=now, when=when)


def renew(table: Table, lease: Lease, *, seconds: float, now: float) -> Lease:
    """Extend a lease we hold to ``now + seconds``. Raises Held when it is not ours any more."""
    return _write(table, "renew", replace(lease, expires_at=now + seconds), now=now)


def release(table: Table, lease: Lease, *, now: float) -> None:
    """Give a lease back; its term stays. Raises Held when it is not ours any more."""
    _write(table, "release", lease, now=now)


def parsed(table: Table, item: Item) -> Lease | None:
    """The lease in an item, None when nobody ever held it."""
    if "holder" not in item:
        return None
    return Lease(
        key=item[table.key_name]["S"],
        term=int(item[table.term_name]["N"]),
        holder=item["holder"]["S"],
        reason=item["reason"]["S"],
        acquired_at=float(item["acquired_at"]["N"]),
        expires_at=float(item["expires_at"]["N"]),
    )


def _write(
    table: Table,
    action: Action,
    mine: Lease,
    *,
    now: float,
    when: Mapping[str, Value] | None = None,
) -> Lease:
    found = read(table, mine.key)
    wanted = decide(found, action, mine, now=now)
    if isinstance(wanted, str):
        raise Held(found or mine, wanted, table.hint if found is None else "")
    unchanged = _attributes(table, found)
    condition = {name: unchanged.get(name) for name in (table.term_name, "holder", "expires_at")}
    try:
        table.update(mine.key, Change(_attributes(table, wanted), {**condition, **(when or {})}))
    except ChangedError:
        pass
    else:
        return wanted
    # A lost answer looks the same: the retry inside boto3 met our own write.
    after = read(table, mine.key)
    if after == wanted:
        return wanted
    if when and after == found:
        raise Held(
            after or mine, f"the item of {mine.key} changed in this moment: it is not {when}"
        )
    raise Held(after or mine, f"{mine.key} was taken in this moment: {who(after)}")


def _attributes(table: Table, lease: Lease | None) -> dict[str, Value]:
    if lease is None:
        return {}
    return {
        table.term_name: {"N": str(lease.term)},
        "holder": {"S": lease.holder},
        "reason": {"S": lease.reason},
        "acquired_at": {"N": repr(lease.acquired_at)},
        "expires_at": {"N": repr(lease.expires_at)},
    }

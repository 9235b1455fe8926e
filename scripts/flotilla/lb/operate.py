"""An operator's commands on the load balancer pair, each plan, confirm, act, verify, record."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from flotilla.errors import BadOption, FlotillaError, HostFailed, Refused
from flotilla.lb import maintenance
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.replace.pair import Pair
from flotilla.rules import lb as rules
from flotilla.rules import lb_maintenance
from flotilla.rules.replace_pair import Balancer
from flotilla.settings import Settings

COMMAND = "fab lb.failover"
# A deploy is not in the way: the address may move while it goes on (fab drill.deploy --fault
# lb-failover), and whoever has a sick load balancer cannot wait for it.
LOCK = "lb"


def seen(settings: Settings) -> dict[str, Any]:
    """{owner, members: [{name, zone, fit, owner}], maintenance, problems, next}; JSON types.

    ``maintenance`` is {by, at, reason} of the page that clients get, None for none.

    Raises Unreachable.
    """
    looked = Pair(settings, say=lambda _: None).look()
    found = rules.problems([_member(one) for one in looked])
    notice = None
    try:
        views = maintenance.seen(settings)
        found += lb_maintenance.problems(views)
        notice = next((kept.running for kept in views.values() if kept.running), None)
    except FlotillaError as error:
        found.append(f"whether there is maintenance cannot be told: {error.what}")
    return {
        "owner": next((one.name for one in looked if one.owner), None),
        "members": [
            {"name": one.name, "zone": one.zone, "fit": one.fit, "owner": one.owner}
            for one in looked
        ],
        "maintenance": asdict(notice) if notice else None,
        "problems": found,
        "next": "fab fleet.status" if found else "",
    }


def failover(
    settings: Settings, source: str | None = None, *, confirmed: Confirmed, said: Said
) -> dict[str, Any]:
    """Move the address to the other load balancer: {changed, old, new, seconds}.

    ``source``: only if it is there. Raises BadOption for no such load balancer, Refused where
    nobody else could serve, HostFailed when the address did not move; it is then where it was.
    """
    pair = Pair(settings, say=said)
    plan = _planned(pair, source)
    if plan is None:
        return {"changed": False, "old": source, "new": None, "seconds": 0.0}
    confirmed(
        f"{settings.prefix}: the address goes from {plan[0].source} to"
        f" {' or '.join(plan[0].others)}; open connections are cut"
    )
    with Lock(settings, LOCK, reason=COMMAND) as lock, recorded(settings, COMMAND, said) as steps:
        with steps.step("look again"):
            plan = _planned(pair, plan[0].source)
        if plan is None:
            return {"changed": False, "old": source, "new": None, "seconds": 0.0}
        lock.check()
        began = time.monotonic()
        with steps.step(f"move away from {plan[0].source}"):
            pair.give_away(plan[1])
        with steps.step("verify"):
            new = next((one.name for one in pair.look() if one.owner), None)
        if new is None:
            raise HostFailed(
                f"the address left {plan[0].source} and is with none of the load balancers",
                "nobody is served until one of them claims it, which they do every 5 s",
                next="fab fleet.logs lb --unit flotilla-address",
            )
        steps.result = {
            "changed": True,
            "old": plan[0].source,
            "new": new,
            "seconds": round(time.monotonic() - began, 1),
        }
        return steps.result


def _planned(pair: Pair, source: str | None) -> tuple[rules.Move, Balancer] | None:
    """The move, and whom it is away from; None for nothing to do."""
    seen = pair.look()
    looked = [_member(one) for one in seen]
    try:
        found = rules.move(looked, source)
    except LookupError:
        raise BadOption(
            f"there is no load balancer {source!r}; there are {', '.join(m.name for m in looked)}",
            untouched="Nothing was changed",
            next="fab lb.status",
        ) from None
    if isinstance(found, str):
        raise Refused(
            found,
            "clients would be led to a host that cannot serve them",
            "Nothing was changed",
            "fab lb.status",
        )
    if found is None:
        return None
    return found, next(one for one in seen if one.name == found.source)


def _member(one: Balancer) -> rules.Member:
    return rules.Member(one.name, one.fit, one.owner)

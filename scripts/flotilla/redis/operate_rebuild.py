"""Replace all data of a replica by a copy of the primary's.

The host does it itself (``redis_node.py rebuild``, of role redis): whoever loses his connection in
the middle has not lost half of it.
"""

from __future__ import annotations

import json
from typing import Any

from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.hosts.ssh import Runner
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.redis.operate import LOCK, MOVERS, TOOL, by_itself, opened
from flotilla.redis.status import looked
from flotilla.rules.redis_maintain import objections
from flotilla.rules.redis_rebuild import Rebuild, rebuild_of
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import DeadlineError, until

# The host's own time limits, and a start and a stop of Redis.
REBUILD_SECONDS = 2900.0
WHOLE_SECONDS = 60.0


def rebuild(settings: Settings, host: str, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Empty a replica and have it copy everything: {host, primary, keys, seconds}.

    Raises BadOption for no host of that name, Refused with nothing changed, HostFailed when it was
    begun: the same command begins again, and the old data is kept until a copy is whole.
    """
    command = f"fab redis.rebuild {host}"
    with opened(settings, fresh=True) as (runner, hosts):
        if host not in {one.name for one in hosts}:
            raise BadOption(
                f"there is no Redis host {host!r}; there are {', '.join(h.name for h in hosts)}",
                untouched="Nothing was changed",
                next="fab redis.status",
            )
        plan = _plan(runner, hosts, host)
        confirmed(_text(settings, plan))
        with (
            Lock(settings, MOVERS, reason=command) as movers,
            Lock(settings, LOCK, reason=command) as lock,
            recorded(settings, command, said) as steps,
        ):
            with steps.step("look again"):
                plan = _plan(runner, hosts, host)
            movers.check()
            lock.check()
            with steps.step(f"copy {plan.primary} to {host}"):
                told = _copy(runner, plan)
            with steps.step("verify"):
                _verify(runner, hosts, host)
            steps.result = told
        return told


def _plan(runner: Runner, hosts: list[Host], host: str) -> Rebuild:
    plan = rebuild_of(*looked(runner, hosts), host)
    if isinstance(plan, str):
        raise Refused(
            plan,
            "its data is thrown away, and another host has to have all of it",
            "Nothing was changed",
            "fab redis.status",
        )
    return plan


def _text(settings: Settings, plan: Rebuild) -> str:
    head = (
        f"{settings.prefix}: the data of {plan.host} is thrown away; it copies everything from"
        f" {plan.primary} and is kept from becoming primary until it has"
    )
    wrong = [f"  now: {sentence}" for sentence in plan.wrong]
    return "\n".join([head, *wrong, f"  meanwhile only {', '.join(plan.others)} can take over"])


def _copy(runner: Runner, plan: Rebuild) -> dict[str, Any]:
    result = by_itself(runner, plan.host, f"{TOOL} rebuild", seconds=REBUILD_SECONDS)
    if result.rc == 0:
        told: dict[str, Any] = json.loads(result.stdout)
        return told
    why = result.last_words
    if result.rc == Refused.exit_code:
        raise Refused(
            f"called off by {plan.host}: {why}",
            "its data is thrown away, and another host has to have all of it",
            "Nothing was changed",
            "fab redis.status",
        )
    raise HostFailed(
        f"{plan.host}: {why}",
        "it does not hold everything yet",
        f"{plan.primary} takes writes, and Sentinel does not make {plan.host} the primary",
        f"fab fleet.logs {plan.host} --unit redis-server, then the same command again",
    )


def _verify(runner: Runner, hosts: list[Host], host: str) -> None:
    wrong: list[str] = []

    def whole() -> bool:
        wrong[:] = objections(*looked(runner, hosts))
        return not wrong

    try:
        until(whole, seconds=WHOLE_SECONDS, every=0.5)
    except DeadlineError:
        raise HostFailed(
            f"{host} has its copy, but not everything is in order: {'; '.join(wrong)}",
            next="fab redis.status",
        ) from None

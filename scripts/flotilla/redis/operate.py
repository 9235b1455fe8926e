"""An operator's commands on Redis, each plan, confirm, act, verify, record.

The move itself is made by the primary's own host (``redis_node.py move``, of role redis): whoever
loses his connection in the middle has not lost half of it.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from flotilla import inventory
from flotilla.errors import BadOption, HostFailed, Refused, Unreachable
from flotilla.hosts.ssh import Result, Runner, prepare
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.redis.status import looked, status
from flotilla.rules.redis import Forced, Next, following, forced, primary, problems
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import DeadlineError, until

COMMAND = "fab redis.switchover"
FORCED = "fab redis.failover"
LOCK = "redis"
# The same lock as a deploy's and provision's: none may move hosts under the other.
MOVERS = "deploy"
TOOL = "/usr/local/lib/flotilla/redis_node.py"
# Longer than the tool waits for Sentinel in all its steps.
MOVE_SECONDS = 150.0
WHOLE_SECONDS = 60.0


def seen(settings: Settings) -> dict[str, Any]:
    """What ``flotilla.redis.status.status`` tells of the fleet. Raises Unreachable."""
    snapshot = inventory.load(settings)
    prepare(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        return status(runner, snapshot.by_role("redis"), stopped=snapshot.stopped("redis"))


def switchover(
    settings: Settings, to: str | None = None, *, confirmed: Confirmed, said: Said
) -> dict[str, Any]:
    """Move the primary's role: {changed, old, new, paused_seconds, seconds}.

    Raises BadOption for no host of that name, Refused when it was not begun or was called off and
    the old primary serves as before, HostFailed when it is not clear how it ended.
    """
    with opened(settings, fresh=True) as (runner, hosts):
        if to is not None and to not in {host.name for host in hosts}:
            raise BadOption(
                f"there is no Redis host {to!r}; there are {', '.join(h.name for h in hosts)}",
                untouched="Nothing was changed",
                next="fab redis.status",
            )
        plan = planned(runner, hosts, to)
        if plan.new == plan.old:
            return {"changed": False, "old": to, "new": to, "paused_seconds": 0.0, "seconds": 0.0}
        confirmed(
            f"{settings.prefix}: Redis goes from {plan.old} to {plan.new}. Sentinel is waited for,"
            " some 10 s; then writes pause for about a second"
        )
        with (
            Lock(settings, LOCK, reason=COMMAND) as lock,
            recorded(settings, COMMAND, said) as steps,
        ):
            with steps.step("look again"):
                plan = planned(runner, hosts, plan.new)
            lock.check()
            with steps.step(f"move to {plan.new}"):
                told = move(runner, plan)
            with steps.step("verify"):
                verify(runner, hosts, plan.new)
            steps.result = told
        return told


def failover(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Have Sentinel take the role from the primary, in whatever state that is: {changed, old, new,
    seconds, problems}, the last being what was still wrong when it was over.

    Raises Refused with nothing changed, HostFailed when nobody else became the primary.
    """
    with opened(settings, fresh=True) as (runner, hosts):
        plan = forced_plan(runner, hosts)
        confirmed(
            f"{settings.prefix}: Sentinel takes Redis' role from {plan.old} and gives it to"
            f" {' or '.join(plan.heirs)}, whoever lacks least. WRITES THAT NO REPLICA HAS ARE LOST;"
            " where the primary is well, fab redis.switchover loses none"
        )
        with (
            Lock(settings, LOCK, reason=FORCED) as lock,
            recorded(settings, FORCED, said) as steps,
        ):
            with steps.step("look again"):
                now = forced_plan(runner, hosts)
                if now.old != plan.old:
                    raise Refused(
                        f"{now.old} is the primary by now, and not {plan.old}",
                        untouched="Nothing was changed",
                        next="fab redis.status",
                    )
            lock.check()
            began = time.monotonic()
            with steps.step(f"tell the Sentinel of {now.teller}"):
                result = by_itself(
                    runner, now.teller, shlex.join([TOOL, "failover"]), seconds=MOVE_SECONDS
                )
                if result.rc == Refused.exit_code:
                    raise Refused(
                        result.last_words,
                        untouched=f"{now.old} has the role as before",
                        next="fab redis.status",
                    )
                if result.rc:
                    raise HostFailed(f"{now.teller}: {result.last_words}", next="fab redis.status")
            with steps.step("verify"):
                new = successor(runner, hosts, now.old)
                seconds = round(time.monotonic() - began, 1)
                left = settled(runner, hosts)
            steps.result = {
                "changed": True,
                "old": now.old,
                "new": new,
                "seconds": seconds,
                "problems": left,
            }
        return steps.result


def forced_plan(runner: Runner, hosts: list[Host]) -> Forced:
    """The failover that can be asked for. Raises Refused."""
    members, silent = looked(runner, hosts)
    found = forced(members, silent, {host.name: host.private_ip or "" for host in hosts})
    if isinstance(found, str):
        raise Refused(
            found,
            "nobody would follow a new primary, or its data would not be the cluster's",
            "Nothing was changed",
            "fab redis.status; docs/runbooks/redis-failed-over.md",
        )
    return found


def successor(runner: Runner, hosts: list[Host], old: str) -> str:
    """Wait for another primary than ``old``; its name. Raises HostFailed."""

    def chosen() -> str | None:
        found = primary(looked(runner, hosts)[0])
        return found.name if found and found.name != old else None

    try:
        return until(chosen, seconds=WHOLE_SECONDS, every=0.5)
    except DeadlineError:
        raise HostFailed(
            f"Sentinel was told, and after {WHOLE_SECONDS:g} s nobody but {old} is the primary",
            next="fab redis.status",
        ) from None


def settled(runner: Runner, hosts: list[Host]) -> list[str]:
    """Wait until nothing is wrong; what still is after a minute."""
    wrong: list[str] = []

    def whole() -> bool:
        nonlocal wrong
        wrong = problems(*looked(runner, hosts))
        return not wrong

    with suppress(DeadlineError):
        until(whole, seconds=WHOLE_SECONDS, every=0.5)
    return wrong


def planned(runner: Runner, hosts: list[Host], to: str | None) -> Next:
    """Who is to be primary after a move. Raises Refused where anything is not in order."""
    members, silent = looked(runner, hosts)
    found = following(members, silent, to)
    if isinstance(found, str):
        raise Refused(
            found,
            "a move begins with everything in order, or it could lose writes",
            "Nothing was changed",
            "fab redis.status",
        )
    return found


def move(runner: Runner, plan: Next) -> dict[str, Any]:
    """Have the primary's host make the move.

    Raises Refused when it was called off and the old primary serves as before, else HostFailed.
    """
    words = shlex.join([TOOL, "move", "--to", plan.new])
    result = by_itself(runner, plan.old, words, seconds=MOVE_SECONDS)
    if result.rc == 0:
        told = json.loads(result.stdout)
        return {"changed": True, **told, "seconds": round(told["seconds"], 1)}
    why = result.last_words
    if result.rc == Refused.exit_code:
        raise Refused(
            f"called off: {why}",
            "a write could have been lost",
            f"{plan.old} takes writes as before",
            "fab redis.status",
        )
    raise HostFailed(
        f"{plan.old}: {why}",
        "the role may have moved or not; nobody takes writes whom a majority of Sentinels does not"
        " name",
        next="fab redis.status",
    )


def by_itself(runner: Runner, host: str, command: str, *, seconds: float) -> Result:
    """Run what a host does by itself, whoever goes on listening.

    Raises HostFailed where nobody knows how it ended.
    """
    try:
        return runner.run(host, command, sudo=True, seconds=seconds, check=False)
    except Unreachable as error:
        raise HostFailed(
            error.what,
            "what it had begun goes on there without us",
            "How it ends is not known",
            "fab redis.status",
        ) from error


def verify(
    runner: Runner,
    hosts: list[Host],
    new: str,
    *,
    after: str = "the move",
    missing: Sequence[str] = (),
) -> None:
    """Wait until ``new`` is primary and nothing is wrong. Raises HostFailed.

    Where hosts were ``missing`` before, others complain of them: then only the primary counts.
    """
    holder, wrong = "", [""]

    def whole() -> bool:
        nonlocal holder, wrong
        members, silent = looked(runner, hosts)
        chosen = primary(members)
        holder, wrong = chosen.name if chosen else "", problems(members, silent)
        return holder == new and bool(missing or not wrong)

    try:
        until(whole, seconds=WHOLE_SECONDS, every=0.5)
    except DeadlineError:
        raise HostFailed(
            f"{holder or 'nobody'} is primary after {after}: "
            f"{'; '.join(wrong) or 'and nothing is wrong'}",
            next="fab redis.status",
        ) from None


@contextmanager
def opened(settings: Settings, *, fresh: bool) -> Iterator[tuple[Runner, list[Host]]]:
    """SSH to the Redis hosts. ``fresh`` asks EC2 who runs, and refuses a list that is too old."""
    oldest = inventory.max_age(settings) if fresh else None
    snapshot = inventory.load(settings, max_age_seconds=oldest, refresh=fresh)
    prepare(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        yield runner, snapshot.by_role("redis")

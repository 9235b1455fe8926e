"""Put up the maintenance page on every load balancer, or on none."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flotilla.aws import edge
from flotilla.errors import BadOption, FlotillaError, HostFailed, Refused
from flotilla.hosts.haproxy import Runtime, over_ssh
from flotilla.hosts.ssh import Runner
from flotilla.lb.reach import reached
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, Steps, recorded
from flotilla.replace.pair import ROLE
from flotilla.rules import lb_maintenance as rules
from flotilla.rules.lb_maintenance import MAP, Kept, Notice
from flotilla.settings import Settings
from flotilla.who import holder

COMMAND = "fab lb.maintenance"
# The same lock as the address's: whoever needs the page cannot wait for a deploy.
LOCK = "lb"


def change(
    settings: Settings,
    *,
    on: bool,
    reason: str = "",
    confirmed: Confirmed,
    said: Said,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Put the page up or take it down: {changed, on, hosts, reason}.

    Raises Refused with nothing changed, HostFailed when one could not be told: the others are then
    as they were, as far as they answer.
    """
    if len(reason) > rules.REASON_LETTERS:
        raise BadOption(
            f"--reason has {len(reason)} letters; {rules.REASON_LETTERS} are the most",
            untouched="Nothing was changed",
        )
    notice = Notice(holder().rpartition(":")[0], round(clock()), reason) if on else None
    with reached(settings) as (runner, snapshot):
        hosts = {host.name: host.instance_id for host in snapshot.by_role(ROLE)}
        if not hosts:
            raise Refused("the fleet has no load balancer", next="fab fleet.provision")
        # Who has the address comes last; where EC2 does not say, the order matters little.
        owners: list[str] = []
        with suppress(FlotillaError):
            owners = edge.owners(settings)
        owner = next((name for name, instance in hosts.items() if instance in owners), "")
        names = rules.order(list(hosts), owner)
        before = {name: read(runner, name) for name in names}
        if all(rules.is_done(kept, None) for kept in before.values()) and notice is None:
            return _outcome(None, [], changed=False)
        confirmed(_plan(settings, notice, names))
        with (
            Lock(settings, LOCK, reason=COMMAND) as lock,
            recorded(settings, COMMAND, said, total=len(names)) as steps,
        ):
            before = {name: read(runner, name) for name in names}
            Telling(runner, steps, guard=lock.check).all(before, notice)
            steps.result = _outcome(notice, names, changed=True)
        return steps.result


def seen(settings: Settings) -> dict[str, Kept]:
    """What each load balancer has, by name. Raises Unreachable, Refused as ``read``."""
    with reached(settings) as (runner, snapshot):
        return {host.name: read(runner, host.name) for host in snapshot.by_role(ROLE)}


def read(runner: Runner, name: str) -> Kept:
    """What a load balancer has. Raises Refused where its configuration knows nothing of it."""
    asked = over_ssh(runner, name)(f"show map {MAP}\n")
    try:
        running = rules.running(asked)
    except ValueError as error:
        raise Refused(
            f"{name}: HAProxy answers {str(error)!r} to 'show map {MAP}'",
            "its configuration is older than the maintenance page",
            "Nothing was changed",
            "fab fleet.configure --limit lb",
        ) from None
    text = runner.run(name, f"cat {MAP}", sudo=True).stdout
    return Kept(running, rules.stored(text))


class Telling:
    """Tells load balancers, and takes back what was told when one cannot be."""

    def __init__(self, runner: Runner, steps: Steps, *, guard: Callable[[], None]) -> None:
        self._runner = runner
        self._steps = steps
        self._guard = guard

    def all(self, before: dict[str, Kept], wanted: Notice | None) -> None:
        """Have each one do it, in order. Raises HostFailed with the others as they were."""
        told: list[str] = []
        for name in before:
            try:
                self._guard()
                with self._steps.step(f"{'put up' if wanted else 'take down'} on {name}"):
                    told.append(name)
                    self._one(name, wanted)
            except FlotillaError as error:
                left = self._back(before, told)
                raise HostFailed(
                    f"{name} could not be told: {error.what}",
                    "the page is with both or with none",
                    f"{', '.join(left)} could not be put back" if left else "All are as they were",
                    "fab lb.status, then again",
                ) from error

    def _one(self, name: str, wanted: Notice | None) -> None:
        # The file first: a process that starts in between has what the next one has.
        self._runner.put(name, rules.line(wanted).encode(), MAP)
        runtime = Runtime(name, over_ssh(self._runner, name))
        now = read(self._runner, name).running
        if now != wanted:
            runtime.command(*rules.commands(now, wanted))
        if not rules.is_done(read(self._runner, name), wanted):
            raise HostFailed(f"{name}: HAProxy does not say what it was told")

    def _back(self, before: dict[str, Kept], told: list[str]) -> list[str]:
        """Put those back that were told; who could not be."""
        left = []
        for name in reversed(told):
            try:
                self._one(name, before[name].running)
            except FlotillaError:
                left.append(name)
        return left


def _plan(settings: Settings, notice: Notice | None, names: list[str]) -> str:
    who = f"{settings.prefix}: on {', '.join(names)}"
    if notice is None:
        return f"{who} the maintenance page is taken down, and clients are served again"
    return f"{who} every request but for the health page is answered 503 with the maintenance page"


def _outcome(notice: Notice | None, names: list[str], *, changed: bool) -> dict[str, Any]:
    return {
        "changed": changed,
        "on": notice is not None,
        "hosts": names,
        "reason": notice.reason if notice else "",
    }

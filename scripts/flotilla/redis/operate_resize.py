"""Give the Redis hosts another instance type, one at a time, while the application goes on.

Killed at any step, the same command goes on: what is left to do is read from EC2 and from the
hosts, never from what an earlier run noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from flotilla import configure, inventory
from flotilla.aws import hardware
from flotilla.aws.resize import retype
from flotilla.aws.resize import start as start_instance
from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.boot import await_ssh
from flotilla.hosts.ssh import Runner
from flotilla.lock import Lock
from flotilla.mysql.recorded import LOOK_AGAIN, Confirmed, Said, Steps, recorded
from flotilla.redis.maintain import ORDER_SECONDS, Maintenance
from flotilla.redis.operate import LOCK, MOVERS, opened
from flotilla.redis.operate_maintain import START_SECONDS
from flotilla.redis.status import looked
from flotilla.rules import redis_resize as rules
from flotilla.rules.redis import Member
from flotilla.rules.redis_maintain import SENTINEL, SERVER, Need, objections
from flotilla.rules.redis_resize import MIB, Machine, Resize, Size
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import DeadlineError, until

COMMAND = "fab redis.resize"
BOOT_SECONDS = 300.0
# systemd began to start them with the host: this waits until they run.
_UP = f"systemctl start {SERVER} {SENTINEL}"

# Writes the settings to the hosts, for a run that holds the lock, as ``configure.under_lock``.
Configure = Callable[[Settings, Sequence[Host], Said], Any]


def configured(settings: Settings, hosts: Sequence[Host], said: Said) -> None:
    """The roles of these hosts. Raises as ``configure.under_lock`` does."""
    configure.under_lock(settings, hosts, say=said)


def resize(
    settings: Settings,
    to: str | None = None,
    *,
    confirmed: Confirmed,
    said: Said,
    configure_hosts: Configure = configured,
) -> dict[str, Any]:
    """Give every host the type and the memory for data that fleet.yml says:
    {changed, type, maxmemory_mb, hosts, moves, seconds}.

    ``to`` must be fleet.yml's. Raises BadOption for no such type, Refused with nothing changed,
    HostFailed or Unreachable naming the host that did not come back: the same command goes on.
    """
    wanted = settings.tiers.redis
    size = hardware.size(settings, to or wanted.type)
    if size.name != wanted.type:
        raise Refused(
            f"fleet.yml says {wanted.type}, not {size.name}",
            "hosts that are made later would have another type than these",
            "Nothing was changed",
            f"set fleet.tiers.redis.type to {size.name} in inventory/{settings.env}/group_vars/all/"
            "fleet.yml, and fleet.redis.maxmemory_mb to at most"
            f" {size.most_mb}; then the same command again",
        )
    plan, members = _plan(settings, size)
    if not plan:
        return _outcome(settings, plan, [], {})
    confirmed(_text(settings, plan, members, size))
    with (
        Lock(settings, MOVERS, reason=COMMAND) as movers,
        Lock(settings, LOCK, reason=COMMAND) as lock,
        recorded(settings, COMMAND, said) as steps,
    ):
        with steps.step(LOOK_AGAIN):
            plan, _ = _plan(settings, size)
        run = _Run(
            settings, plan, (movers, lock), steps, said=said, configure_hosts=configure_hosts
        )
        moves = run.run()
        steps.result = _outcome(settings, plan, moves, steps.seconds)
    return steps.result


class _Run:
    """One pass of a plan, under the locks."""

    def __init__(
        self,
        settings: Settings,
        plan: Resize,
        locks: Sequence[Lock],
        steps: Steps,
        *,
        said: Said,
        configure_hosts: Configure,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._locks = locks
        self._steps = steps
        self._said = said
        self._configure = configure_hosts

    def run(self) -> list[dict[str, Any]]:
        """All of it; the moves that were made for the primary's sake."""
        if self._plan.away:
            self._start(self._plan.away)
        # Anew, for the list of hosts to connect to has those that run only.
        with opened(self._settings, fresh=True) as (runner, hosts):
            rolling = Maintenance(
                runner,
                hosts,
                self._locks,
                self._steps,
                work=lambda need: self._work(runner, need),
                check=self._check,
            )
            for name in self._plan.returning:
                _up(runner, name)
            if self._plan.returning or self._plan.wrong:
                rolling.await_order(self._plan.returning)
            self._memory(runner, hosts, lambda have, wanted: have > wanted)
            moves = rolling.run(self._plan.needed)
            self._memory(runner, hosts, lambda have, wanted: have != wanted)
            with self._steps.step("verify"):
                self._verify(runner, hosts)
        return moves

    def _start(self, machine: Machine) -> None:
        self._check_locks()
        with self._steps.step(f"start {machine.name} as {self._plan.to}"):
            self._retype(machine)

    def _work(self, runner: Runner, need: Need) -> None:
        machine = self._machine(need.name)
        self._retype(machine)
        _up(runner, need.name)

    def _retype(self, machine: Machine) -> None:
        to = self._plan.to
        try:
            if machine.type == to:
                start_instance(self._settings, machine.instance_id)
            else:
                retype(self._settings, machine.instance_id, before=machine.type, to=to)
        except (HostFailed, Unreachable):
            raise
        except FlotillaError as error:
            # No refusal: it may be stopped by now.
            raise HostFailed(
                f"{machine.name}: {error.what}", error.why, error.untouched, error.next
            ) from error

    def _check(self, need: Need) -> None:
        found = self._machine(need.name).type
        if found != self._plan.to:
            raise HostFailed(f"{need.name} is a {found}, not a {self._plan.to}")

    def _machine(self, name: str) -> Machine:
        for one in _machines(self._settings):
            if one.name == name:
                return one
        raise HostFailed(f"EC2 does not show {name} any more", next="fab fleet.status")

    def _memory(
        self, runner: Runner, hosts: list[Host], is_wrong: Callable[[int, int], bool]
    ) -> None:
        """Have the hosts take maxmemory where one has it wrong. Raises HostFailed."""
        wanted = self._plan.maxmemory_mb * MIB

        def found() -> list[str]:
            members, _ = looked(runner, hosts)
            return [m.name for m in members if is_wrong(m.max_bytes or 0, wanted)]

        if not found():
            return
        self._check_locks()
        with self._steps.step(f"set maxmemory to {self._plan.maxmemory_mb} MiB"):
            self._configure(self._settings, hosts, self._said)
            if left := found():
                raise HostFailed(
                    f"{', '.join(left)}: maxmemory is not {self._plan.maxmemory_mb} MiB",
                    untouched="The hosts have their new type, and clients are served",
                    next="fab fleet.configure --limit redis, then the same command again",
                )

    def _verify(self, runner: Runner, hosts: list[Host]) -> None:
        others = [m.name for m in _machines(self._settings) if m.type != self._plan.to]
        wrong = [f"{name} is not a {self._plan.to}" for name in others]
        wrong += objections(*looked(runner, hosts))
        if wrong:
            raise HostFailed("; ".join(wrong), next="fab redis.status")

    def _check_locks(self) -> None:
        for lock in self._locks:
            lock.check()


def _plan(settings: Settings, size: Size) -> tuple[Resize, list[Member]]:
    """What is to be done, and the members that answered. Raises Refused where nothing may be."""
    machines = _machines(settings)
    with opened(settings, fresh=True) as (runner, hosts):
        members, wrong = _settled(runner, hosts, is_whole=len(hosts) == len(machines))
    found = rules.resize(machines, members, wrong, size, settings.redis.maxmemory_mb)
    if isinstance(found, str):
        raise Refused(
            found,
            "a host that is away must come back with room for all data, and the others must do"
            " without it meanwhile",
            "Nothing was changed",
            "fab redis.status; docs/runbooks/redis-memory-is-full.md",
        )
    return found, members


def _settled(
    runner: Runner, hosts: list[Host], *, is_whole: bool
) -> tuple[list[Member], list[str]]:
    """The members, and what is wrong with them; it gets a moment to pass where nobody is away."""
    members: list[Member] = []
    wrong: list[str] = []

    def well() -> bool:
        nonlocal members, wrong
        members, silent = looked(runner, hosts)
        wrong = objections(members, silent)
        return not wrong

    with suppress(DeadlineError):
        until(well, seconds=ORDER_SECONDS if is_whole else 0.0, every=0.5)
    return members, wrong


def _machines(settings: Settings) -> list[Machine]:
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    return hardware.machines(settings, [h for h in snapshot.hosts if h.role == "redis"])


def _up(runner: Runner, name: str) -> None:
    """Wait until a host that was started runs Redis again. Raises HostFailed, Unreachable."""
    await_ssh(runner, name, seconds=BOOT_SECONDS)
    runner.run(name, _UP, sudo=True, seconds=START_SECONDS)


def _text(settings: Settings, plan: Resize, members: Sequence[Member], size: Size) -> str:
    head = f"{settings.prefix}: {COMMAND} to {plan.to} ({size.memory_mb} MiB), one after the other"
    return "\n".join([head, *(f"  {line}" for line in rules.plan(plan, members, size))])


def _outcome(
    settings: Settings, plan: Resize, moves: list[dict[str, Any]], seconds: Any
) -> dict[str, Any]:
    hosts = {name: need.reasons[0] for name, need in plan.needed.items()}
    if plan.away:
        hosts[plan.away.name] = f"{plan.away.type} -> {plan.to}"
    return {
        "changed": bool(plan),
        "type": plan.to,
        "maxmemory_mb": settings.redis.maxmemory_mb,
        "hosts": hosts,
        "moves": moves,
        "seconds": dict(seconds),
    }

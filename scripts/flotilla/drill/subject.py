"""What is drilled, as a drill sees it: who is primary, what is out of order, how all comes back.

A subject decides nothing about a failover: it looks on, and puts back what is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError
from flotilla.hosts.ssh import Runner
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import DeadlineError, until

START_SECONDS = 180.0
# How often a drill looks whether what it struck is in order again.
LOOK_SECONDS = 0.25

Alive = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class View:
    """One look. ``why`` says what is out of order, "" where nothing is; ``names`` are by UUID."""

    primary: str
    term: int
    why: str
    names: Mapping[str, str] = field(default_factory=dict)


class Subject(Protocol):
    """Something that fails over, on hosts of a fleet."""

    def view(self, but: str = "") -> View:
        """The cluster now, without the member ``but``. Raises FlotillaError: it cannot be seen."""

    def arm(self) -> None:
        """Have nothing hold up a failover: a former one that nobody has looked at. Raises Refused
        where somebody has asked for peace.
        """

    def give(self, to: str) -> None:
        """Make another member primary, as planned."""

    def mend(self, old: str, alive: Alive) -> list[str]:
        """Bring back whoever is out, and wait until nothing is out of order and writes are taken.

        What became of ``old``, word by word; ``alive`` is told when its host is up again. Raises
        FlotillaError where it does not come.
        """


def started(settings: Settings, instance_id: str) -> bool:
    """Start an instance that somebody stopped, and wait until it runs; whether it was stopped."""
    ec2 = client(settings, "ec2")

    def state() -> str:
        with described(settings, f"look up {instance_id}"):
            found = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        return str(found[0]["Instances"][0]["State"]["Name"])

    if state() == "running":
        return False

    def runs() -> bool:
        now = state()
        # A fence goes on until it has seen the host stopped, and may do it once more.
        if now == "stopped":
            with described(settings, f"start {instance_id}"):
                ec2.start_instances(InstanceIds=[instance_id])
        return now == "running"

    awaited(runs, START_SECONDS, f"{instance_id} runs")
    return True


def revived(
    settings: Settings, runner: Runner, host: Host, *, seconds: float = START_SECONDS
) -> bool:
    """Start a host that somebody stopped, and wait until it answers SSH; whether it was stopped.

    Whoever stops it once more meanwhile only lengthens this. Raises FlotillaError.
    """
    if not started(settings, host.instance_id):
        return False

    def usable() -> bool:
        return not started(settings, host.instance_id) and answers(runner, host)

    awaited(usable, seconds, f"{host.name} answers SSH")
    return True


def answers(runner: Runner, host: Host) -> bool:
    """Whether a command can be run there now."""
    try:
        runner.run(host, "true", seconds=5)
    except FlotillaError:
        return False
    return True


def awaited(what: Callable[[], bool], seconds: float, named: str) -> None:
    """Wait until something is so. Raises FlotillaError that names it."""
    try:
        until(what, seconds=seconds, every=0.5)
    except DeadlineError as error:
        raise FlotillaError(f"{error}: {named}", next="fab fleet.status") from None

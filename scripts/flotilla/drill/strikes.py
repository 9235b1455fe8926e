"""Faults of a store with one primary: how each is made, and how it is undone.

What a root shell or the EC2 API can do is done that way, on any fleet; the network is asked of
``Outside``, where there is one. An undo never fails for a host that is down: whoever fenced the old
primary has stopped it, and putting it back is not the fault's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from flotilla.aws.session import client, described
from flotilla.drill.faults import Outside, undo
from flotilla.errors import FlotillaError, Unreachable
from flotilla.hosts.ssh import Runner
from flotilla.mysql import store
from flotilla.rules.drill_fault import Aim, Fault
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot

SHELL_SECONDS = 60.0
# Longer than any fault lasts that is undone in time.
FORGOTTEN_SECONDS = 300.0


@dataclass(slots=True)
class Site:
    """What a fault has to work with. ``unit`` is what systemd calls the server; ``apps`` are where
    clients live; ``give`` makes a member primary, as planned.
    """

    settings: Settings
    runner: Runner
    unit: str
    members: Mapping[str, Host]
    apps: Mapping[str, Host]
    give: Callable[[str], None]
    outside: Outside | None = None
    undoing: list[Callable[[], None]] = field(default_factory=list)
    # What a drill that goes on does itself, at its end.
    breaking: list[Callable[[], None]] = field(default_factory=list)

    def on(self, host: str, command: str) -> None:
        """Run a command as root. Raises HostFailed, Unreachable."""
        self.runner.run(host, command, sudo=True, seconds=SHELL_SECONDS)

    def later(self, host: str, command: str) -> None:
        """Undo by a command; a host that is down has nothing left to undo."""

        def tell() -> None:
            with suppress(Unreachable):
                self.on(host, command)

        self.undoing.append(tell)


Strike = Callable[[Any, Aim], None]


def _kill(site: Site, aim: Aim) -> None:
    site.on(aim.target, f"systemctl kill --kill-whom=main --signal=KILL {site.unit}")


def thawed_later(unit: str) -> str:
    """A command that has a unit go on by itself after a while: our own undo may be killed."""
    go_on = f"systemctl kill --kill-whom=all --signal=CONT {unit}"
    return f"systemd-run --quiet --collect --on-active={FORGOTTEN_SECONDS:g} {go_on}"


def _freeze(site: Site, aim: Aim) -> None:
    site.on(aim.target, thawed_later(site.unit))
    # A unit that systemd has started anew meanwhile runs already: CONT does nothing to it. It fails
    # where there is no process, and then nobody is frozen.
    site.later(aim.target, f"systemctl kill --kill-whom=main --signal=CONT {site.unit} || true")
    site.on(aim.target, f"systemctl kill --kill-whom=main --signal=STOP {site.unit}")


def _restart(site: Site, aim: Aim) -> None:
    site.on(aim.target, f"systemctl restart --no-block {site.unit}")


def _stop(site: Site, aim: Aim) -> None:
    host = site.members[aim.target]
    site.breaking.append(lambda: _start(site, host))
    with described(site.settings, f"stop {host.name}"):
        client(site.settings, "ec2").stop_instances(InstanceIds=[host.instance_id], Force=True)


def _start(site: Site, host: Host) -> None:
    """Have a host that was stopped start, and wait for nothing: the drill is over."""
    ec2 = client(site.settings, "ec2")
    with described(site.settings, f"start {host.name}"):
        until_stopped = ec2.get_waiter("instance_stopped")
        until_stopped.wait(
            InstanceIds=[host.instance_id], WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
        ec2.start_instances(InstanceIds=[host.instance_id])


def spared(settings: Settings, snapshot: Snapshot) -> str:
    """The zone of the MySQL primary, "" when nobody is."""
    record = store.records(settings).read()
    hosts = snapshot.by_role("mysql")
    return next((h.zone for h in hosts if record and h.instance_id == record.instance_id), "")


def outside(kind: str) -> Strike:
    """A fault of that kind, made by whoever has power over the fleet from outside its hosts."""

    def strike(site: Site, aim: Aim) -> None:
        power = site.outside
        if power is None:
            raise FlotillaError(f"nothing here has the power over the network that {kind} takes")
        site.undoing.append(lambda: power.heal(aim.target))
        power.strike(aim.target, kind, **aim.options)

    return strike


def _switchover(site: Site, aim: Aim) -> None:
    site.give(aim.target)


STRIKES: Mapping[str, Strike] = {
    "kill": _kill,
    "freeze": _freeze,
    "partition": outside("cut"),
    "partition-replicas-only": outside("cut"),
    "stop-instance": _stop,
    "zone": outside("zone"),
    "switchover": _switchover,
    "restart": _restart,
}


@contextmanager
def struck(strikes: Mapping[str, Strike], site: Site, fault: Fault, aim: Aim) -> Iterator[None]:
    """The fault is made, and undone at the end of the block, also by Ctrl-C.

    Raises FlotillaError; what was done by then is undone, and a host that was stopped is started,
    for nobody else will do that now.
    """
    try:
        strikes[fault.name](site, aim)
        yield
    except BaseException:
        undo(site.breaking)
        raise
    finally:
        undo(site.undoing)

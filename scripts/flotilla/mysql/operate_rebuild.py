"""Commands on one member: make it a copy of another one, or let it follow again."""

from __future__ import annotations

from typing import Any

from flotilla import inventory
from flotilla.aws.resize import start as start_instance
from flotilla.errors import Unreachable
from flotilla.hosts.boot import await_ssh
from flotilla.mysql.leasing import leased
from flotilla.mysql.operate import demand_member
from flotilla.mysql.rebuild import Rebuilding, described
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.rejoin import Rejoining
from flotilla.mysql.session import Session, session
from flotilla.rules.mysql_rejoin import Do
from flotilla.settings import Settings

# Crash recovery at the start, and flushing a large buffer pool at the end, take their time.
START_SECONDS = 900
BOOT_SECONDS = 300.0
FORGET = "rm -f /var/lib/mysql/auto.cnf"


def rebuild(
    settings: Settings, host: str, *, give_up: bool, confirmed: Confirmed, said: Said
) -> dict[str, Any]:
    """Replace a member's data by a copy: {host, donor, surplus, saved_to, rows, seconds}.

    Raises Refused with nothing changed, HostFailed when it was begun and is to be run again.
    """
    with session(settings, fresh=True) as opened:
        demand_member(opened, host)
        run = rebuilding(opened, host)
        confirmed(described(settings, run.plan()))
        with recorded(settings, f"fab mysql.rebuild {host}", said) as steps:
            done = run.apply(steps.step, give_up=give_up)
            steps.result = done.as_dict() | {"seconds": steps.seconds}
        return steps.result


def rejoin(settings: Settings, host: str, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Let a member take its place again, and start its host if that is stopped: {changed, started,
    host, done}.

    Raises Refused with nothing changed where it must be rebuilt, or waits for something else.
    """
    command = f"fab mysql.rejoin {host}"
    found = inventory.load(settings, refresh=True).host(host)
    if found.role == "mysql" and found.state in {"stopped", "stopping"}:
        confirmed(
            f"{settings.prefix}: {host} is {found.state}: start it. It boots read-only and follows"
            " nobody, and is let in if it holds nothing that others lack"
        )
        with recorded(settings, command, said) as steps, steps.step(f"start {host}"):
            start_instance(settings, found.instance_id)
        inventory.load(settings, refresh=True)
        with session(settings, fresh=True) as opened:
            booted(opened, host)
            start(opened, host)
        confirmed = _agreed
    with session(settings, fresh=True) as opened:
        demand_member(opened, host)
        run = Rejoining(settings, opened.cluster, host)
        advice = run.plan()
        if advice.do is Do.NOTHING:
            started = confirmed is _agreed
            return {"changed": started, "started": started, "host": host, "done": []}
        confirmed(
            f"{settings.prefix}: {host}: {advice.do} first, as {advice.why}; then what follows"
        )
        with recorded(settings, command, said) as steps, leased(settings, command) as lock:
            done = run.apply(lock, steps.step)
            started = confirmed is _agreed
            steps.result = {
                "changed": started or bool(done),
                "started": started,
                "host": host,
                "done": done,
            }
        return steps.result


def _agreed(_: str) -> None:
    """What follows from what was confirmed."""


def rebuilding(opened: Session, host: str) -> Rebuilding:
    """A rebuild of one host, through SSH."""
    runner = opened.runner
    return Rebuilding(
        opened.settings,
        opened.cluster,
        host,
        channel=lambda command: runner.stream(opened.snapshot.host(host), command, sudo=True),
        start=lambda: start(opened, host),
        forget=lambda: forget(opened, host),
    )


def start(opened: Session, host: str) -> None:
    """Start a host's server, and wait until systemd says that it runs. Raises HostFailed."""
    opened.runner.run(host, "systemctl start mysql", sudo=True, seconds=START_SECONDS)


def forget(opened: Session, host: str) -> None:
    """Have a host's server make a new UUID at its next start. Raises HostFailed."""
    opened.runner.run(host, FORGET, sudo=True)


def stop(opened: Session, host: str) -> None:
    """Shut a host's server down in order. Raises HostFailed."""
    opened.cluster.server(host).close()
    opened.runner.run(host, "systemctl stop mysql", sudo=True, seconds=START_SECONDS)


def booted(opened: Session, name: str, *, seconds: float = BOOT_SECONDS) -> None:
    """Wait until a host answers SSH again. Raises Unreachable."""
    try:
        await_ssh(opened.runner, name, seconds=seconds)
    except Unreachable as error:
        error.untouched = "The hosts after it were left as they are; the primary takes writes"
        raise

"""The fleet as a whole: make it, configure it, look at it, and take it away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, TAKE_OVER, YES, attempt, confirm, said, show, typed
from flotilla.words import counted

if TYPE_CHECKING:
    from flotilla.settings import Settings


@task(
    help={
        "shrink": "stateful roles (mysql, redis; comma between) that may lose hosts",
        **TAKE_OVER,
        **YES,
        **JSON,
    }
)
def provision(
    _: Context,
    shrink: str = "",
    *,
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Make AWS look like fleet.yml says, and wait until every host answers SSH.

    Hosts are added, never restarted, resized or replaced; a tier with data loses hosts only with
    --shrink. A second run changes nothing. Exit 0 done or nothing to do, 1 AWS did not end as it
    should, 3 refused and nothing changed, 4 the API or a host does not answer.
    """
    from flotilla import config
    from flotilla.provision import operate

    settings = attempt(config.load, json=json)
    roles = [role.strip() for role in shrink.split(",") if role.strip()]
    again = typed("fleet.provision", shrink=shrink, take_over=take_over)
    outcome = attempt(
        lambda: operate.provision(
            settings,
            shrink=roles,
            take_over=take_over,
            confirmed=lambda plan: confirm(
                f"{settings.prefix}: {counted(len(plan), 'change')}\n{operate.summary(plan)}",
                yes=yes,
                again=again,
            ),
            said=said,
        ),
        json=json,
    )
    snapshot = attempt(lambda: operate.await_hosts(settings, said=said), json=json)
    hosts = [host.name for host in snapshot.hosts]
    changes = counted(len(outcome.changes), "change")
    text = f"{settings.prefix}: {counted(len(hosts), 'host')}, {changes}"
    show(outcome.as_dict() | {"hosts": hosts}, json=json, text=text)


@task(
    help={
        "data": "delete the buckets (releases, backups, audit) and the secrets too",
        **TAKE_OVER,
        "yes": "the fleet's name, instead of typing it when asked",
        **JSON,
    }
)
def destroy(
    _: Context, *, data: bool = False, take_over: bool = False, yes: str = "", json: bool = False
) -> None:
    """Delete the fleet: hosts, addresses, network, roles, tables. Asks for the fleet's name.

    Buckets and secrets stay unless --data: with them, fleet.provision and a restore bring the fleet
    back. Exit 0 nothing is left, 1 something is, 3 refused and nothing changed, 4 the API is down.
    """
    from flotilla import config
    from flotilla.provision import operate

    settings = attempt(config.load, json=json)
    outcome = attempt(
        lambda: operate.take_away(
            settings,
            data=data,
            take_over=take_over,
            confirmed=lambda plan: _by_name(
                f"{settings.prefix}: {counted(len(plan), 'deletion')}\n{operate.summary(plan)}",
                settings,
                yes,
            ),
            said=said,
        ),
        json=json,
    )
    text = f"{settings.prefix}: {len(outcome.changes)} deleted"
    show(outcome.as_dict(), json=json, text=text)


@task(
    help={
        "limit": "only these: hosts, roles or zones, comma between (default: every host)",
        "check": "show what would change, change nothing; needs no --yes",
        **TAKE_OVER,
        **YES,
        **JSON,
    }
)
def configure(
    _: Context,
    limit: str | None = None,
    *,
    check: bool = False,
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Make every host what its roles say (playbooks/site.yml). A second run changes nothing.

    Exit 0 done or nothing to do, 1 the playbook did not start, 2 a host failed, 3 refused and
    nothing changed, 4 the API or a host does not answer, 5 no such host, role or zone.
    """
    from flotilla import config
    from flotilla import configure as configuring

    settings = attempt(config.load, json=json)
    again = typed("fleet.configure", limit=limit, take_over=take_over)
    run = attempt(
        lambda: configuring.configure(
            settings,
            check=check,
            limit=limit,
            take_over=take_over,
            confirmed=lambda hosts: confirm(
                configuring.described(settings, hosts), yes=yes, again=again
            ),
            say=said,
        ),
        json=json,
    )
    hosts = counted(len(run.recap.keys() - {"localhost"}), "host")
    text = f"{settings.prefix}: {hosts}, {run.changed} "
    text += f"{'would change' if check else 'changes'} in {run.seconds:.0f} s"
    show(configuring.as_dict(run, check=check), json=json, text=text)


@task(
    positional=["role", "count"],
    help={
        "role": "the tier; only app can be scaled",
        "count": "how many hosts",
        **YES,
        **JSON,
    },
)
def scale(_: Context, role: str, count: str, *, yes: bool = False, json: bool = False) -> None:
    """Have more or fewer application hosts; no client notices. For example: fab fleet.scale app 6.

    New hosts get the release that the others run; hosts that go are drained first. fleet.yml is not
    written: put the number there too, or the next fleet.provision goes back to it. Exit 0 done or
    nothing to do, 2 a host failed, 3 refused and nothing changed, 4 unreachable, 5 no such role.
    """
    from flotilla import config
    from flotilla import scale as capability

    settings = attempt(config.load, json=json)
    plan = attempt(lambda: capability.plan(settings, role, capability.number(count)), json=json)
    text = capability.told(plan)
    if plan.add or plan.remove:
        again = typed("fleet.scale", role, count)
        attempt(lambda: confirm(text, yes=yes, again=again), json=json)
        attempt(lambda: capability.to(settings, plan, said=said), json=json)
    show(plan.as_dict(), json=json, text=text)


@task(help={"watch": "look again every two seconds, until Ctrl-C", **JSON})
def status(_: Context, *, watch: bool = False, json: bool = False) -> None:
    """Show every host, load balancer, database and cache, and what is wrong. Changes nothing.

    Exit 0 whatever it finds ("ok" and "findings" of --json tell), 4 when neither the API nor an
    older list of hosts says which hosts there are, 5 with --watch and no terminal.
    """
    from flotilla import config
    from flotilla import status as capability

    settings = attempt(config.load, json=json)
    if watch and not json:
        attempt(lambda: capability.watch(settings))
        return
    seen = attempt(lambda: capability.status(settings), json=json)
    if json:
        show(seen, json=True, text="")
    else:
        capability.show(seen)


@task(positional=["host"], help={"host": "a host's name or instance id"})
def ssh(_: Context, host: str) -> None:
    """Open a shell on a host, through the bastion, with its host key checked.

    Exit: the shell's own, 4 the host does not run, 5 no such host.
    """
    import os

    from flotilla import config, fleet

    settings = attempt(config.load)
    argv = attempt(lambda: fleet.shell(settings, host))
    os.execvp(argv[0], argv)  # noqa: S606  replaces this process, so that the terminal is the shell's


@task(positional=["host"], help={"host": "a host's name or instance id", **JSON})
def console(_: Context, host: str, *, json: bool = False) -> None:
    """Show what a host has printed on its console since it booted. For one that does not answer.

    Exit 0 done, 4 the API does not answer, 5 no such host.
    """
    from flotilla import config, fleet

    settings = attempt(config.load, json=json)
    text = attempt(lambda: fleet.console(settings, host), json=json)
    show({"host": host, "console": text}, json=json, text=text.rstrip() or "nothing was printed")


@task(
    positional=["command"],
    help={
        "command": "a shell command, in quotes",
        "on": "where: hosts, roles or zones, comma between, or all",
        "sudo": "as root",
        "seconds": "how long a host lets it run (default 60)",
        **JSON,
    },
)
def run(
    _: Context,
    command: str,
    on: str,
    *,
    sudo: bool = False,
    seconds: int = 60,
    json: bool = False,
) -> None:
    """Run a command on many hosts at once. Hosts that say the same share their output.

    For example: fab fleet.run --on app,lb 'systemctl is-active haproxy'. Exit 0 all did it, 2 it
    failed somewhere, 4 a host did not answer, 5 no such host, role or zone.
    """
    from flotilla import config, fleet

    settings = attempt(config.load, json=json)
    results = attempt(
        lambda: fleet.run(settings, on, command, sudo=sudo, seconds=seconds, say=said), json=json
    )
    show(fleet.as_dict(results, command), json=json, text=fleet.grouped(results))
    if error := fleet.failure(results, command):
        raise Exit(str(error), code=error.exit_code)


@task(
    positional=["host"],
    help={
        "host": "hosts, roles or zones, comma between, or all",
        "unit": "only this unit: app, haproxy, mysql, redis-server, ...",
        "since": "from then on, as journalctl reads it: '10 min ago', today, '2026-01-31 09:00'",
        "lines": "without --since, the last so many of each host (default 100)",
        "follow": "go on as lines come, until Ctrl-C",
        **JSON,
    },
)
def logs(
    _: Context,
    host: str,
    unit: str = "",
    since: str = "",
    lines: int = 100,
    *,
    follow: bool = False,
    json: bool = False,
) -> None:
    """Show the journals of hosts as one, in order of time (UTC).

    Exit 0 done, 4 a host did not answer (the others' lines are shown), 5 no such host, role, zone
    or time.
    """
    from flotilla import config, fleet_logs

    settings = attempt(config.load, json=json)
    if follow and not json:
        attempt(
            lambda: fleet_logs.follow(
                settings,
                host,
                unit=unit,
                lines=lines,
                line=lambda text: show({}, json=False, text=text),
                say=said,
            )
        )
        return
    found, errors = attempt(
        lambda: fleet_logs.read(settings, host, unit=unit, since=since, lines=lines), json=json
    )
    told = {name: error.as_dict() for name, error in errors.items()}
    text = "\n".join(fleet_logs.merged(found)) or "no entries"
    show({"hosts": found, "errors": told}, json=json, text=text)
    if errors:
        raise Exit("; ".join(error.what for error in errors.values()), code=4)


def _by_name(plan: str, settings: Settings, typed: str) -> None:
    """Print the plan; go on only for who names the fleet, on the command line or when asked."""
    import sys

    from flotilla.errors import Refused

    said(plan)
    if not typed and sys.stdin.isatty():
        sys.stderr.write(f"Type {settings.name} to delete all this: ")
        sys.stderr.flush()
        typed = sys.stdin.readline().strip()
    if typed != settings.name:
        raise Refused(
            f"{typed!r} is not {settings.name!r}, the name of the fleet that would go"
            if typed
            else "this was the plan; nobody has typed the fleet's name",
            untouched="Nothing was changed",
            next=f"fab fleet.destroy --yes {settings.name}",
        )

"""The fleet as a whole: make it, configure it, look at it, and take it away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show

if TYPE_CHECKING:
    from flotilla.settings import Settings

_TAKE_OVER = {"take-over": "take the lock from a run that is known to be dead"}


@task(
    help={
        "shrink": "stateful roles (mysql, redis; comma between) that may lose hosts",
        **_TAKE_OVER,
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
    outcome = attempt(
        lambda: operate.provision(
            settings,
            shrink=roles,
            take_over=take_over,
            confirmed=lambda plan: confirm(
                f"{settings.prefix}: {len(plan)} changes\n{operate.summary(plan)}",
                yes=yes,
                again="fab fleet.provision",
            ),
            said=said,
        ),
        json=json,
    )
    snapshot = attempt(lambda: operate.await_hosts(settings, said=said), json=json)
    hosts = [host.name for host in snapshot.hosts]
    text = f"{settings.prefix}: {len(hosts)} hosts, {len(outcome.changes)} changes"
    show(outcome.as_dict() | {"hosts": hosts}, json=json, text=text)


@task(
    help={
        "data": "delete the buckets (releases, backups, audit) and the secrets too",
        **_TAKE_OVER,
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
                f"{settings.prefix}: {len(plan)} deletions\n{operate.summary(plan)}",
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
        **_TAKE_OVER,
        **YES,
        **JSON,
    }
)
def configure(
    _: Context,
    limit: str = "",
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
    again = "fab fleet.configure" + (f" --limit {limit}" if limit else "")
    run = attempt(
        lambda: configuring.configure(
            settings,
            check=check,
            limit=limit or None,
            take_over=take_over,
            confirmed=lambda hosts: confirm(
                configuring.described(settings, hosts), yes=yes, again=again
            ),
            say=said,
        ),
        json=json,
    )
    hosts = len(run.recap.keys() - {"localhost"})
    text = f"{settings.prefix}: {hosts} hosts, {run.changed} "
    text += f"{'would change' if check else 'changes'} in {run.seconds:.0f} s"
    show(configuring.as_dict(run, check=check), json=json, text=text)


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

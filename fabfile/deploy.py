"""Rolling deploys: put a release on every application host while clients are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from fabfile import _replace
from fabfile._operator import JSON, YES, attempt, confirm, said, show

if TYPE_CHECKING:
    from flotilla.deploy import Step
    from flotilla.rules.deploy import Options

_ROLL = {
    "version": "the release to deploy; fab app.list shows them",
    "batches": "sizes of the batches, the last one repeats (default 1,50%)",
    "floor": "percent of the serving hosts that stay in rotation (default 50)",
    "adopt": "take hosts along that somebody left drained or in maintenance",
    "outage": "accept that nobody serves meanwhile, as with a single host",
}


@task(help={**_ROLL, **JSON})
def plan(
    _: Context,
    version: str,
    *,
    batches: str = "1,50%",
    floor: int = 50,
    adopt: bool = False,
    outage: bool = False,
    json: bool = False,
) -> None:
    """Show which hosts would get a release, in which order. Nothing is changed.

    Exit 0 a plan exists, 3 a deploy would be refused, 5 no such release.
    """
    from flotilla import config
    from flotilla import deploy as capability

    options = _options(batches, floor, adopt=adopt, outage=outage)
    settings = attempt(config.load, json=json)
    made = attempt(lambda: capability.planned(settings, version, options), json=json)
    boot = settings.application.boot_seconds
    show(made.as_dict(), json=json, text=capability.described(made, boot))


@task(
    help={
        **_ROLL,
        "take-over": "take the lock from a run that is known to be dead",
        **YES,
        **JSON,
    }
)
def run(
    _: Context,
    version: str,
    *,
    batches: str = "1,50%",
    floor: int = 50,
    adopt: bool = False,
    outage: bool = False,
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Deploy a release, host by host, and say what clients saw: served N, failed 0, retried R.

    A failure brings every host back to what it ran. Exit 0 every host runs the release and no
    request failed, 1 requests failed, 2 a host failed and all were brought back (or are named),
    3 refused and nothing changed, 4 unreachable, 5 no such release.
    """
    from flotilla import config
    from flotilla import deploy as capability

    options = _options(batches, floor, adopt=adopt, outage=outage)
    settings = attempt(config.load, json=json)
    again = f"fab deploy.run --version {version}"
    outcome = attempt(
        lambda: capability.deploy(
            settings,
            version,
            options,
            confirmed=lambda plan: confirm(capability.described(plan), yes=yes, again=again),
            said=_told,
            take_over=take_over,
        ),
        json=json,
    )
    show(outcome.as_dict(), json=json, text="\n".join([outcome.line, *outcome.notes]))
    attempt(outcome.raise_failure)


_CUT_OFF = {
    "id": "the deploy, as fab deploy.history --json names it (default: the newest)",
    "take-over": "take the lock from the run that was killed, without waiting for it to expire",
}


@task(help={**_CUT_OFF, **YES, **JSON})
def resume(
    _: Context,
    *,
    id: str = "",
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Finish a deploy that was cut off, from its journal and from what hosts are like now.

    One that was going back already goes on going back. Exit 0 every host runs the release, 2 a
    host failed and all were brought back (or are named), 3 nothing was cut off or the lock is
    held, 4 a host does not answer.
    """
    _recover(back=False, id=id, take_over=take_over, yes=yes, json=json)


@task(help={**_CUT_OFF, **YES, **JSON})
def abort(
    _: Context,
    *,
    id: str = "",
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Bring every host back to what it ran before a deploy that was cut off or stopped.

    Exit 0 every host runs again what it ran, 2 hosts are left and named, 3 nothing was cut off or
    the lock is held.
    """
    _recover(back=True, id=id, take_over=take_over, yes=yes, json=json)


@task(
    help={
        "version": "the release to go back to (default: the one that hosts had before)",
        "take-over": "take the lock from a run that is known to be dead",
        **YES,
        **JSON,
    }
)
def rollback(
    context: Context,
    *,
    version: str = "",
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Deploy the release again that the hosts ran before this one, by the same careful steps.

    Exit as deploy.run; 3 also when the release before is not known.
    """
    from flotilla import config
    from flotilla import deploy as capability

    found = version or attempt(lambda: capability.previous(config.load()), json=json)
    run(context, found, take_over=take_over, yes=yes, json=json)


@task(help={**_replace.HELP, **YES, **JSON})
def image(
    _: Context,
    role: str = "app",
    image: str = "",
    come_seconds: int = 0,
    *,
    back: bool = False,
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Replace hosts by new ones of a tested image: one at first, and never fewer than now serve.

    A failure brings the image of before back. A run that was killed is gone on with by the same
    command. Exit 0 every host is of the image and no request failed, 1 requests failed, 2 hosts
    failed and those of before serve (or what is left is named), 3 refused and nothing changed, 4
    unreachable, 5 no such image or role, 99 interrupted.
    """
    from flotilla.replace import Options

    options = Options(image or None, back, float(come_seconds) or None, take_over)
    _replace.exchange(role, options, yes=yes, json=json)


@task(help=JSON)
def history(_: Context, json: bool = False) -> None:
    """List the deploys run from this machine, newest first. "cut off" ones never ended."""
    from flotilla import config
    from flotilla import deploy as capability

    entries = attempt(lambda: capability.history(config.load()), json=json)
    lines = [
        f"{e.began[:19]}  {e.version:24} {e.result:14} "
        f"served {e.served if e.served is not None else '-'}, "
        f"failed {e.failed if e.failed is not None else '-'}  {e.by}"
        for e in entries
    ]
    text = "\n".join(lines) or "nothing was deployed from here yet"
    show([entry.as_dict() for entry in entries], json=json, text=text)


def _options(batches: str, floor: int, *, adopt: bool, outage: bool) -> Options:
    from flotilla.rules.deploy import Options

    sizes = tuple(part.strip() for part in batches.split(",") if part.strip())
    return Options(batches=sizes, floor_percent=floor, adopt=adopt, outage=outage)


def _recover(*, back: bool, id: str, take_over: bool, yes: bool, json: bool) -> None:
    from flotilla import config
    from flotilla import deploy as capability

    settings = attempt(config.load, json=json)
    again = f"fab deploy.{'abort' if back else 'resume'}{f' --id {id}' if id else ''}"
    outcome = attempt(
        lambda: capability.resume(
            settings,
            id,
            back=back,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=_told,
            take_over=take_over,
        ),
        json=json,
    )
    show(outcome.as_dict(), json=json, text="\n".join([outcome.line, *outcome.notes]))
    if not (back and outcome.result == "rolled back"):
        attempt(outcome.raise_failure)


def _told(step: Step) -> None:
    end = f"FAILED: {step.error}" if step.error else "ok"
    said(f"{step.host} {step.name} ... {end} {step.seconds:.1f} s")

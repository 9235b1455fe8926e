"""Rolling deploys: put a release on every application host while clients are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from fabfile import _replace
from fabfile._operator import JSON, TAKE_OVER, YES, attempt, confirm, said, show, typed
from flotilla.deploy_words import HELP, Words

if TYPE_CHECKING:
    from flotilla.deploy import Outcome, Step
    from flotilla.settings import Settings

_ROLL = {name: HELP[name] for name in ("version", "batches", "floor", "headroom")}
_ROLL |= {name: HELP[name] for name in ("adopt", "outage")}
_SAY = {name: HELP[name] for name in ("plan", "reason", "override-freeze")}


# Without one-letter flags: -h would be --headroom's, and everywhere else it asks for help.
@task(
    auto_shortflags=False,
    optional=["save"],
    help={**_ROLL, "save": "keep the plan, in this file or in var/<env>/plans/", **JSON},
)
def plan(
    _: Context,
    version: str,
    *,
    batches: str = "",
    floor: str = "",
    headroom: str = "",
    adopt: bool = False,
    outage: bool = False,
    save: str | None = None,
    json: bool = False,
) -> None:
    """Show which hosts would get a release, in which order, and how long it takes.

    Nothing is changed. With --save the plan is kept for deploy.run --plan. Exit 0 a plan exists,
    3 a deploy would be refused, 4 unreachable, 5 no such release.
    """
    from datetime import UTC, datetime
    from pathlib import Path

    from flotilla import config
    from flotilla import deploy as capability
    from flotilla.deploy import plans

    words = Words(version, batches, floor, headroom, adopt, outage)
    settings = attempt(config.load, json=json)
    asked = attempt(lambda: capability.request(settings, words), json=json)
    made = attempt(
        lambda: capability.planned(settings, asked.version, asked.options, asked.terms), json=json
    )
    told, text = made.as_dict(), capability.described(made)
    if save:
        to = Path(save) if isinstance(save, str) else None
        now = datetime.now(UTC)
        path = attempt(lambda: plans.save(settings, told, to, now=now), json=json)
        told["saved"] = str(path)
        text += f"\n  saved: fab deploy.run --plan {path}"
    show(told, json=json, text=text)


@task(auto_shortflags=False, help={**_ROLL, **_SAY, **TAKE_OVER, **YES, **JSON})
def run(
    _: Context,
    version: str = "",
    *,
    batches: str = "",
    floor: str = "",
    headroom: str = "",
    adopt: bool = False,
    outage: bool = False,
    plan: str = "",
    reason: str = "",
    override_freeze: str = "",
    take_over: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Deploy a release, host by host, and say what clients saw: served N, failed 0, retried R.

    A failure brings every host back to what it ran. Exit 0 every host runs the release and no
    request failed, 1 requests failed, 2 a host failed and all were brought back (or are named),
    3 refused and nothing changed, 4 unreachable, 5 no such release, 99 interrupted and all is as
    before.
    """
    from flotilla import config

    words = Words(version, batches, floor, headroom, adopt, outage, plan, reason, override_freeze)
    settings = attempt(config.load, json=json)
    outcome = attempt(lambda: _deploy(settings, words, take_over=take_over, yes=yes), json=json)
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
        "reason": HELP["reason"],
        "override-freeze": HELP["override-freeze"],
        **TAKE_OVER,
        **YES,
        **JSON,
    }
)
def rollback(
    context: Context,
    *,
    version: str = "",
    reason: str = "",
    override_freeze: str = "",
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
    run(
        context,
        found,
        reason=reason,
        override_freeze=override_freeze,
        take_over=take_over,
        yes=yes,
        json=json,
    )


@task(help={**_replace.HELP, **YES, **JSON})
def image(
    _: Context,
    role: str = "app",
    image: str = "",
    come_seconds: int = 0,
    *,
    back: bool = False,
    reason: str = "",
    override_freeze: str = "",
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

    options = Options(
        image or None,
        back=back,
        come_seconds=float(come_seconds) or None,
        take_over=take_over,
        reason=reason,
        override_freeze=override_freeze,
    )
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


def _deploy(settings: Settings, words: Words, *, take_over: bool, yes: bool) -> Outcome:
    from flotilla import deploy as capability

    asked = capability.request(settings, words)
    again = f"fab deploy.run {words.typed}{' --take-over' if take_over else ''}"
    return capability.deploy(
        settings,
        asked.version,
        asked.options,
        confirmed=lambda made: confirm(capability.described(made), yes=yes, again=again),
        said=_told,
        take_over=take_over,
        terms=asked.terms,
    )


def _recover(*, back: bool, id: str, take_over: bool, yes: bool, json: bool) -> None:
    from flotilla import config
    from flotilla import deploy as capability

    settings = attempt(config.load, json=json)
    verb = "abort" if back else "resume"
    again = typed(f"deploy.{verb}", id=id, take_over=take_over)
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

"""What ``fab deploy.image`` asks and prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabfile._operator import attempt, confirm, said, show, typed
from flotilla.deploy_words import HELP as DEPLOY_HELP
from flotilla.errors import BadOption

if TYPE_CHECKING:
    from flotilla.replace import Options, Outcome
    from flotilla.replace.step import Said

ROLES = ("app", "lb")
HELP = {
    "role": "whose hosts: app or lb",
    "image": "an image's id or name (default: the newest tested one); fab images.list shows them",
    "back": "bring the image of before back in the middle of a run that did not end",
    "come-seconds": "how long a new host may take to serve (default: deploy.progress_seconds)",
    "take-over": "take the lock from a run that is known to be dead",
    "reason": DEPLOY_HELP["reason"],
    "override-freeze": "replace hosts in a freeze window, for this reason",
}


def exchange(role: str, options: Options, *, yes: bool, json: bool) -> None:
    """Replace the hosts of a role, and show how it ended."""
    from flotilla import config

    settings = attempt(config.load, json=json)
    again = typed(
        "deploy.image",
        role=role,
        image=options.image,
        come_seconds=options.come_seconds and f"{options.come_seconds:g}",
        back=options.back,
        reason=options.reason,
        override_freeze=options.override_freeze,
        take_over=options.take_over,
    )

    def act() -> Outcome:
        from flotilla.replace import operate, operate_pair

        _demand(role)
        if role == "app":
            return operate.exchange(
                settings,
                options,
                confirmed=lambda plan: confirm(operate.described(plan), yes=yes, again=again),
                said=_told,
            )
        return operate_pair.exchange(
            settings,
            options,
            confirmed=lambda plan: confirm(operate_pair.described(plan), yes=yes, again=again),
            said=_told,
            say=lambda line: said(f"  {line}"),
        )

    outcome = attempt(act, json=json)
    show(outcome.as_dict(), json=json, text="\n".join([outcome.line, *outcome.notes]))
    attempt(outcome.raise_failure)


def _demand(role: str) -> None:
    if role not in ROLES:
        raise BadOption(
            f"there is no exchange of hosts for role {role!r}; there is for {' and '.join(ROLES)}",
            why="a database or cache host holds data, and the bastion is replaced by provisioning",
            untouched="Nothing was changed",
            next="fab deploy.image --role app",
        )


def _told(step: Said) -> None:
    end = f"FAILED: {step.error}" if step.error else "ok"
    said(f"{step.name} ... {end} {step.seconds:.1f} s")

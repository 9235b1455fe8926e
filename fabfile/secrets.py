"""Secrets: how old they are, and change one while everybody who uses it goes on."""

from __future__ import annotations

from typing import Any

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show, typed


@task(help=JSON)
def status(_: Context, *, json: bool = False) -> None:
    """Show every secret's age, who changed it last, and whether a rotation is under way.

    Changes nothing and reads no value. Exit 0 whatever it finds, 4 the API does not answer.
    """
    from flotilla import config
    from flotilla import secrets as capability

    found = attempt(lambda: capability.status(config.load()), json=json)
    show(found, json=json, text=_board(found))


@task(
    positional=["name"],
    auto_shortflags=False,
    help={
        "name": "which one, as fab secrets.status names it",
        "strangers-ready": "go on although somebody who is no host of the fleet uses the account:"
        " they have the new value",
        **YES,
        **JSON,
    },
)
def rotate(
    _: Context,
    name: str,
    *,
    strangers_ready: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Change a password without an interruption: both are accepted until every client has moved.

    A run that was killed or stopped is gone on with by the same command; until its last two steps
    the old value works as before. Exit 0 done, 2 a host does not do what it was told, 3 refused or
    it cannot go on now, 4 unreachable, 5 no such secret, or one that cannot be rotated.
    """
    from flotilla import config
    from flotilla import secrets as capability

    settings = attempt(config.load, json=json)
    again = typed("secrets.rotate", name, strangers_ready=strangers_ready)
    done = attempt(
        lambda: capability.rotate(
            settings,
            name,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
            strangers_ready=strangers_ready,
        ),
        json=json,
    )
    text = f"{name} is changed" if done["steps"] else f"{name} was changed by another run meanwhile"
    show(done, json=json, text=text)


def _board(found: dict[str, Any]) -> str:
    rows = [
        f"{one['name']:18} {_age(one):>9}  {one['rotating'] or '-':8} {one['by'] or '-':28}"
        f" {one['path']}"
        for one in found["secrets"]
    ]
    head = f"{'secret':18} {'age':>9}  {'rotating':8} {'changed by':28} parameter"
    return "\n".join([head, *rows, *(f"note  {note}" for note in found["notes"])])


def _age(row: dict[str, Any]) -> str:
    return "missing" if row["age_days"] is None else f"{row['age_days']} days"

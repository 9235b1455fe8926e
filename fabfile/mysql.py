"""The MySQL cluster: who is primary, make it whole, move the role."""

from __future__ import annotations

from typing import Any

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show


@task(help=JSON)
def status(_: Context, *, json: bool = False) -> None:
    """Show who is primary, who follows, how far behind, and what is wrong. Changes nothing.

    Exit 0 whatever it finds, 3 the record cannot be read, 4 the API or the bastion does not answer.
    """
    from flotilla import config
    from flotilla.mysql import operate

    settings = attempt(config.load, json=json)
    found = attempt(lambda: operate.status(settings), json=json)
    show(found, json=json, text=_board(found))


@task(help={**YES, **JSON})
def ensure(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Make the cluster what its record says: form it, grant the role, let replicas follow.

    Use it after hosts were restarted, and whenever fab mysql.status names something to do. A second
    run changes nothing. Exit 0 whole, 2 a step failed, 3 refused (unclear or errant) and nothing
    changed, 4 the API or a host does not answer.
    """
    from flotilla import config
    from flotilla.mysql import operate

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate.ensure(
            settings,
            confirmed=lambda plan: confirm(plan, yes=yes, again="fab mysql.ensure"),
            said=said,
        ),
        json=json,
    )
    what = f"{len(done['steps'])} steps done" if done["changed"] else "nothing to do"
    text = f"{done['primary']} is primary of term {done['term']}: {what}"
    show(done, json=json, text="\n".join([text, *done["notes"]]))


@task(
    help={
        "to": "the replica to promote (default: the one nearest to the primary)",
        "writers": "clients that write meanwhile, to measure what they see; 0 measures nothing",
        **YES,
        **JSON,
    }
)
def switchover(
    _: Context, to: str | None = None, writers: int = 4, *, yes: bool = False, json: bool = False
) -> None:
    """Move the primary to another host, without losing a write and with a pause below a second.

    Use it before working on the primary's host. Exit 0 done, 2 begun and to be finished by fab
    mysql.ensure, 3 refused or called off and the old primary takes writes as before, 4 the API or
    a host does not answer, 5 no such host.
    """
    from flotilla import config
    from flotilla.mysql import operate

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate.switchover(
            settings,
            to,
            writers=writers,
            confirmed=lambda plan: confirm(plan, yes=yes, again="fab mysql.switchover"),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=_report(done))


def _report(done: dict[str, Any]) -> str:
    text = f"{done['new']} is primary of term {done['term']}; no server took writes for "
    text += f"{done['paused_seconds']:.2f} s"
    if done["ledger_host"] is None:
        return text + " (no client measured it)"
    return (
        f"{text}; clients on {done['ledger_host']} saw {done['write_gap_seconds']:.2f} s without an"
        f" acknowledged write, {done['acked']} acknowledged, {done['lost']} lost"
    )


def _board(found: dict[str, Any]) -> str:
    columns = ("name", "role", "writable", "term", "source", "lag_seconds", "semi_sync", "why")
    rows = [[_cell(member.get(column)) for column in columns] for member in found["members"]]
    table = [list(columns), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    lines += [f"! {problem}" for problem in found["problems"]] or ["all is well"]
    return "\n".join([*lines, *([f"Next: {found['next']}"] if found["next"] else [])])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

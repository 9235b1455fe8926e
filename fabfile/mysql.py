"""The MySQL cluster: who is primary, make it whole, move the role, look after its members."""

from __future__ import annotations

from typing import Any

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show, typed
from flotilla.words import counted, minute

# Clients that measure a switchover unless somebody says otherwise.
_WRITERS = 4


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
    what = f"{counted(len(done['steps']), 'step')} done" if done["changed"] else "nothing to do"
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
    _: Context,
    to: str | None = None,
    writers: int = _WRITERS,
    *,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Move the primary to another host, without losing a write and with a pause below a second.

    Use it before working on the primary's host. Exit 0 done or nothing to do, 2 begun and to be
    finished by fab mysql.ensure, 3 refused or called off and the old primary takes writes as
    before, 4 the API or a host does not answer, 5 no such host.
    """
    from flotilla import config
    from flotilla.mysql import operate

    settings = attempt(config.load, json=json)
    again = typed("mysql.switchover", to=to, writers=None if writers == _WRITERS else writers)
    done = attempt(
        lambda: operate.switchover(
            settings,
            to,
            writers=writers,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=_report(done))


@task(
    help={
        "to": "who takes over (default: whoever holds everything)",
        "accept-loss": "go on although acknowledged writes may be lost; the plan says which",
        **YES,
        **JSON,
    }
)
def failover(
    _: Context,
    to: str | None = None,
    *,
    accept_loss: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Replace a primary that does not serve, or complete a change of primary that was cut off.

    Watchers do it by themselves; this is for when they are paused, blocked or may not decide. A
    living primary is never replaced (fab mysql.switchover). Exit 0 done, 2 the record was changed
    and the same command completes it, 3 refused and nobody was promoted, 4 unreachable, 5 no such
    host.
    """
    from flotilla import config
    from flotilla.mysql import operate_failover

    settings = attempt(config.load, json=json)
    again = typed("mysql.failover", to=to, accept_loss=accept_loss)
    done = attempt(
        lambda: operate_failover.failover(
            settings,
            to,
            accept_loss=accept_loss,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=f"{done['primary']} is primary of term {done['term']}")


@task(positional=["host"], help={"host": "the MySQL host that is to follow again", **YES, **JSON})
def rejoin(_: Context, host: str, *, yes: bool = False, json: bool = False) -> None:
    """Let a host take its place in the cluster again, if it holds nothing that others lack.

    Its own watcher does that by itself; this is for when it is paused or waits. Exit 0 done or
    nothing to do, 2 begun and not ended, 3 refused (it must be rebuilt, or waits for something),
    4 unreachable, 5 no such host.
    """
    from flotilla import config
    from flotilla.mysql import operate_rebuild

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate_rebuild.rejoin(
            settings,
            host,
            confirmed=lambda plan: confirm(plan, yes=yes, again=typed("mysql.rejoin", host)),
            said=said,
        ),
        json=json,
    )
    text = "\n".join(done["done"]) or f"{host} is where it belongs"
    text = f"{host} was started; {text}" if done.get("started") else text
    show(done, json=json, text=text)


@task(
    positional=["host"],
    help={
        "host": "the MySQL host whose data is replaced",
        "give-up": "go on although its logs no longer have all that only it holds",
        **YES,
        **JSON,
    },
)
def rebuild(
    _: Context, host: str, *, give_up: bool = False, yes: bool = False, json: bool = False
) -> None:
    """Replace all data on a host by a copy of another one, and let it follow the primary.

    For a former primary with writes that nobody else has, a replica that diverged, and one that was
    away for too long. What only it holds is saved to the backups bucket first. Exit 0 done, 2 begun
    and to be run again, 3 refused and nothing changed, 4 unreachable, 5 no such host.
    """
    from flotilla import config
    from flotilla.mysql import operate_rebuild

    settings = attempt(config.load, json=json)
    again = typed("mysql.rebuild", host, give_up=give_up)
    done = attempt(
        lambda: operate_rebuild.rebuild(
            settings,
            host,
            give_up=give_up,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{host} is a copy of {done['donor']} and follows the primary"
    saved = f"{done['surplus']} is kept in {done['saved_to']}" if done["saved_to"] else ""
    show(done, json=json, text="\n".join(filter(None, [text, saved])))


@task(name="add-replica", help={**YES, **JSON})
def add_replica(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Launch a MySQL host and make it a replica: one that is missing, or else one more.

    It is filled before anybody reads from it, and fleet.yml is not written: put the number there
    too, or the next fleet.provision refuses. Exit 0 done, 2 a host failed and the same command goes
    on, 3 refused and nothing changed, 4 the API or a host does not answer.
    """
    from flotilla import config
    from flotilla.mysql import operate_grow

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate_grow.add_replica(
            settings,
            confirmed=lambda plan: confirm(plan, yes=yes, again="fab mysql.add-replica"),
            said=said,
        ),
        json=json,
    )
    text = f"{', '.join(done['hosts'])} follows; fleet.tiers.mysql.count is to be {done['count']}"
    show(done, json=json, text=text)


@task(help={"restart": "restart every host, whether it needs it or not", **YES, **JSON})
def patch(_: Context, *, restart: bool = False, yes: bool = False, json: bool = False) -> None:
    """Upgrade MySQL's packages and restart what needs it: replicas first, the primary last.

    One host at a time, and writes go on; the primary hands its role over first. A host is restarted
    when packages or settings (fab fleet.configure writes them) are newer than its server. Exit 0
    done or nothing to do, 2 a host did not come back, 3 refused and nothing changed, 4 unreachable.
    """
    from flotilla import config
    from flotilla.mysql import operate_maintain

    settings = attempt(config.load, json=json)
    again = typed("mysql.patch", restart=restart)
    done = attempt(
        lambda: operate_maintain.patch(
            settings,
            restart=restart,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=_rolled(done))


@task(help={**YES, **JSON})
def resize(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Give the MySQL hosts the instance type that fleet.yml names, the primary last.

    One host at a time is stopped and started, and writes go on; the primary hands its role over
    first. Exit 0 done or nothing to do, 2 a host did not come back or EC2 has no room (it then runs
    as before), 3 refused and nothing changed, 4 unreachable.
    """
    from flotilla import config
    from flotilla.mysql import operate_maintain

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate_maintain.resize(
            settings,
            confirmed=lambda plan: confirm(plan, yes=yes, again="fab mysql.resize"),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=_rolled(done))


@task(
    help={
        "reason": "why; whoever looks at the cluster meanwhile reads it",
        "minutes": "for how long; automatic failover is back after that, whatever happens",
        **YES,
        **JSON,
    }
)
def pause(
    _: Context, reason: str = "", minutes: int = 60, *, yes: bool = False, json: bool = False
) -> None:
    """Keep the cluster from changing by itself: no automatic failover and no rejoin for a while.

    For work on the database hosts that this repository does not do itself. Exit 0 done, 3 refused
    and nothing changed, 4 the API does not answer, 5 no reason, or too long.
    """
    from flotilla import config
    from flotilla.mysql import operate_record

    settings = attempt(config.load, json=json)
    again = typed("mysql.pause", reason=reason, minutes=minutes)
    done = attempt(
        lambda: operate_record.pause(
            settings,
            reason,
            minutes,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
        ),
        json=json,
    )
    text = f"paused for {counted(minutes, 'minute')}; to end it before: fab mysql.unpause"
    show(done, json=json, text=text)


@task(help={**YES, **JSON})
def unpause(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Let the cluster look after itself again. What there is to do, the watchers do at once.

    Exit 0 done or nothing to do, 3 refused and nothing changed, 4 the API does not answer.
    """
    from flotilla import config
    from flotilla.mysql import operate_record

    settings = attempt(config.load, json=json)
    again = typed("mysql.unpause")
    done = attempt(
        lambda: operate_record.unpause(
            settings, confirmed=lambda plan: confirm(plan, yes=yes, again=again)
        ),
        json=json,
    )
    show(done, json=json, text="not paused any more" if done["changed"] else "it was not paused")


@task(
    help={
        "term": "only the report of this term, in full",
        "acknowledge": "say that a human has looked: watchers may fail over again at once",
        **YES,
        **JSON,
    }
)
def history(
    _: Context, term: int = 0, *, acknowledge: bool = False, yes: bool = False, json: bool = False
) -> None:
    """Show who failed over to whom, why, and what it cost; and whether watchers may do it again.

    After an automatic failover there is no second one for an hour, or until --acknowledge. Exit 0
    whatever it finds, 3 there is no record, or --acknowledge was not confirmed, 4 the API does not
    answer, 5 no report of that term.
    """
    import time

    from flotilla import config
    from flotilla.mysql import operate_record
    from flotilla.rules import mysql_report

    settings = attempt(config.load, json=json)
    report = None
    if term:
        # First: not acknowledged, and then said not to be there.
        there = attempt(lambda: operate_record.history(settings), json=json)
        report = attempt(lambda: operate_record.the_report(there, term), json=json)
    if acknowledge:
        again = typed("mysql.history", term=term or None, acknowledge=True)
        seen = attempt(
            lambda: operate_record.acknowledge(
                settings, confirmed=lambda plan: confirm(plan, yes=yes, again=again)
            ),
            json=json,
        )
        done = f"{counted(len(seen), 'failover')} acknowledged"
        said(done if seen else "there was nothing to acknowledge")
    if report:
        show(report.as_dict(), json=json, text=mysql_report.text(report))
    else:
        found = attempt(lambda: operate_record.history(settings), json=json)
        show(found, json=json, text=operate_record.told(found, time.time()))


def _rolled(done: dict[str, Any]) -> str:
    if not done["changed"]:
        return "nothing to do"
    moved = done["moved"]
    text = f"{', '.join(done['hosts'])} done in {sum(done['seconds'].values()):.0f} s"
    return f"{text}; {moved['new']} is primary of term {moved['term']}" if moved else text


def _report(done: dict[str, Any]) -> str:
    if not done["changed"]:
        return f"{done['new']} is primary of term {done['term']} already: nothing to do"
    text = f"{done['old']} -> {done['new']}, term {done['term']}; no server took writes for "
    text += f"{done['paused_seconds']:.2f} s"
    if done["ledger_host"] is None:
        return text + " (no client measured it)"
    return (
        f"{text}; clients on {done['ledger_host']} saw {done['write_gap_seconds']:.2f} s without an"
        f" acknowledged write, {done['acked']} acknowledged, {done['lost']} lost"
    )


def _board(found: dict[str, Any]) -> str:
    columns = ("name", "role", "writable", "term", "source", "lag_seconds", "semi_sync", "why")
    # None follows nobody, and is nobody's address.
    named = {None: None} | {m["address"]: m["name"] for m in found["members"] if "address" in m}
    members = [
        m | {"source": named.get(m.get("source"), m.get("source"))} for m in found["members"]
    ]
    rows = [[_cell(member.get(column)) for column in columns] for member in members]
    table = [list(columns), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    lines += [f"! {problem}" for problem in found["problems"]]
    if found["blocked_until"]:
        lines.append(
            f"! no second automatic failover before {minute(found['blocked_until'])}, or before"
            " somebody has looked at the last one"
        )
    elif not found["problems"]:
        lines.append("all is well, and watchers fail over by themselves")
    if found["holder"]:
        lines.append(f"at work: {found['holder']}")
    return "\n".join([*lines, *([f"Next: {found['next']}"] if found["next"] else [])])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

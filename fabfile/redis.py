"""Redis: who is primary, move the role, work on the hosts, and bring data back."""

from __future__ import annotations

from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show, typed
from flotilla.words import counted


@task(help=JSON)
def status(_: Context, *, json: bool = False) -> None:
    """Show who is primary, who follows, what each Sentinel says, and what is wrong.

    Changes nothing. Exit 0 whatever it finds, 4 the API or the bastion does not answer.
    """
    from flotilla import config
    from flotilla.redis import operate

    settings = attempt(config.load, json=json)
    found = attempt(lambda: operate.seen(settings), json=json)
    show(found, json=json, text=_board(found))


@task(help={"to": "who is to be primary (default: the replica that lacks least)", **YES, **JSON})
def switchover(_: Context, to: str | None = None, *, yes: bool = False, json: bool = False) -> None:
    """Move the primary to another host without losing a write: pause, wait, then fail over.

    Use it before working on the primary's host. Exit 0 done or nothing to do, 2 begun and it is not
    clear how it ended (fab redis.status tells), 3 refused or called off and the old primary takes
    writes as before, 4 unreachable, 5 no such host.
    """
    from flotilla import config
    from flotilla.redis import operate

    settings = attempt(config.load, json=json)
    again = typed("redis.switchover", to=to)
    done = attempt(
        lambda: operate.switchover(
            settings,
            to,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{done['new']} is primary"
    if done["changed"]:
        text += f"; writes were paused for {done['paused_seconds']:.2f} s"
    show(done, json=json, text=text)


@task(help={**YES, **JSON})
def failover(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Take the role from a primary that is unwell, where redis.switchover is refused or called off.

    Sentinel chooses the replica that lacks least. Writes that no replica has are lost. Exit 0 done,
    2 Sentinel was told and nobody else is primary, 3 refused (no majority of Sentinels, no whole
    replica) and nothing changed, 4 unreachable.
    """
    from flotilla import config
    from flotilla.redis import operate

    settings = attempt(config.load, json=json)
    again = typed("redis.failover")
    done = attempt(
        lambda: operate.failover(
            settings,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = "\n".join(
        [
            f"{done['new']} is primary, {done['old']} was, {done['seconds']:.1f} s",
            *(f"! {one}" for one in done["problems"]),
        ]
    )
    show(done, json=json, text=text)


@task(help={"restart": "restart every host, whether it needs it or not", **YES, **JSON})
def patch(_: Context, *, restart: bool = False, yes: bool = False, json: bool = False) -> None:
    """Upgrade Redis' packages and restart what needs it: replicas first, the primary last.

    One host at a time, and writes go on; the primary hands its role over first. A service is
    restarted when its program, its unit or a setting is newer than what runs. Exit 0 done or
    nothing to do, 2 a host did not come back and those after it were left alone, 3 refused and
    nothing changed, 4 unreachable.
    """
    from flotilla import config
    from flotilla.redis import operate_maintain

    settings = attempt(config.load, json=json)
    again = typed("redis.patch", restart=restart)
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


@task(help={"type": "the instance type that fleet.yml names (default: that one)", **YES, **JSON})
def resize(_: Context, type: str | None = None, *, yes: bool = False, json: bool = False) -> None:
    """Give the Redis hosts the instance type and maxmemory of fleet.yml, the primary last.

    One host at a time is stopped, changed and started, and writes go on; the primary hands its role
    over first. Cut off, the same command goes on. Exit 0 done or nothing to do, 2 a host did not
    come back, or EC2 has no room (it then runs as before), 3 refused (the type is too small for the
    data, or not fleet.yml's, or not all is in order) and nothing changed, 4 unreachable, 5 no such
    type.
    """
    from flotilla import config
    from flotilla.redis import operate_resize

    settings = attempt(config.load, json=json)
    again = typed("redis.resize", type=type)
    done = attempt(
        lambda: operate_resize.resize(
            settings,
            type,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = _rolled(done)
    if done["changed"]:
        text += (
            f"; {done['type']}, maxmemory {done['maxmemory_mb']} MiB. Hosts that are made later get"
            " that type by: fab fleet.provision"
        )
    show(done, json=json, text=text)


@task(positional=["host"], help={"host": "the Redis host whose data is thrown away", **YES, **JSON})
def rebuild(_: Context, host: str, *, yes: bool = False, json: bool = False) -> None:
    """Empty a replica whose data or append-only file is broken, and copy everything again.

    Its old data is moved aside and kept until the copy is whole; until then Sentinel does not make
    it the primary. Exit 0 done, 2 begun and not ended (the same command begins again), 3 refused
    (it is the primary, or no other replica keeps up) and nothing changed, 4 unreachable, 5 no such
    host.
    """
    from flotilla import config
    from flotilla.redis import operate_rebuild

    settings = attempt(config.load, json=json)
    again = typed("redis.rebuild", host)
    done = attempt(
        lambda: operate_rebuild.rebuild(
            settings,
            host,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{host} is a copy of {done['primary']}: {done['keys']} keys in {done['seconds']:.0f} s"
    show(done, json=json, text=text)


@task(help={**YES, **JSON})
def backup(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Take a backup of Redis now, from a replica, and read back what was stored.

    A timer does it every day. Exit 0 done, 2 it was cut off and there is no backup, 3 refused (no
    replica, no room, another one is at it), 4 unreachable.
    """
    from flotilla import config
    from flotilla.redis import operate_backup

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate_backup.backup(
            settings,
            confirmed=lambda plan: confirm(plan, yes=yes, again="fab redis.backup"),
            said=said,
        ),
        json=json,
    )
    text = f"backup {done['backup']} of {done['host']}: {counted(done['keys'], 'key')}"
    show(done, json=json, text=text)


@task(help=JSON)
def backups(_: Context, *, json: bool = False) -> None:
    """Show the backups of Redis, the newest first. Changes nothing.

    Exit 0 there is one, 1 there is none, 3 a manifest is damaged (the others are shown all the
    same), 4 S3 or the API does not answer.
    """
    from flotilla import config
    from flotilla.redis import operate_backup

    settings = attempt(config.load, json=json)
    found = attempt(lambda: operate_backup.listed(settings), json=json)
    show(found, json=json, text=_stored(found))
    if found["damaged"]:
        raise Exit(code=3)
    if not found["backups"]:
        raise Exit(code=1)


@task(help={"from": "which backup: its id, or latest (default)", **YES, **JSON})
def restore(_: Context, from_: str = "latest", *, yes: bool = False, json: bool = False) -> None:
    """Replace all data of Redis by a backup, on a running group or on one that came back empty.

    It is fetched and checked before anything is touched; the old data stays on the primary, in
    /var/lib/redis/data.before-<time>. Exit 0 done, 2 begun and not ended (the same command begins
    again), 3 refused or called off and the old data is served, 4 unreachable, 5 no such id.
    """
    from flotilla import config
    from flotilla.redis import operate_backup

    settings = attempt(config.load, json=json)
    again = typed("redis.restore", **{"from": from_})
    done = attempt(
        lambda: operate_backup.restore(
            settings,
            from_,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{done['host']} serves {done['backup']}: {counted(done['keys'], 'key')}; it was away"
    show(done, json=json, text=f"{text} for {done['away_seconds']:.1f} s. Before: {done['before']}")


def _stored(found: dict[str, Any]) -> str:
    from flotilla.rules.redis_backup import age

    lines = [
        f"{one['id']}  {one['host']:9} {age(one['age_seconds']):>7}  {one['keys']:>10}"
        f" {one['bytes'] >> 20:7} MiB {one['stored_bytes'] >> 20:7} MiB"
        for one in found["backups"]
    ]
    head = f"{'backup':26} {'host':9} {'age':>7}  {'keys':>10} {'data':>11} {'stored':>11}"
    table = [head, *lines] if lines else ["there is no backup; next: fab redis.backup"]
    return "\n".join([*table, *(f"! {one['why']}" for one in found["damaged"])])


def _rolled(done: dict[str, Any]) -> str:
    if not done["changed"]:
        return "nothing to do"
    text = f"{', '.join(done['hosts'])} done in {sum(done['seconds'].values()):.0f} s"
    moves = [
        f"{move['new']} is primary, writes were paused for {move['paused_seconds']:.2f} s"
        for move in done["moves"]
    ]
    return "; ".join([text, *moves])


def _board(found: dict[str, Any]) -> str:
    lines = [f"{'name':10} {'role':9} {'follows':16} {'offset':>12}  Sentinels name"]
    for one in found["members"]:
        if one["role"] == "silent":
            lines.append(f"{one['name']:10} silent    {one['why']}")
            continue
        named = ", ".join(sorted({str(name) for name in one["names"].values()}))
        role = "primary" if one["is_primary"] else one["role"] or "no answer"
        follows = one["primary_address"] or "-"
        lines.append(f"{one['name']:10} {role:9} {follows:16} {one['offset'] or 0:12}  {named}")
    wrong = [*found["problems"], *found["certificates"]]
    lines += [f"! {problem}" for problem in wrong] or ["all is well"]
    return "\n".join(lines)

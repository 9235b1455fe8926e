"""Backups of MySQL: what there is, take one, prove it, bring something back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show, typed
from flotilla.words import counted

_TO = {
    "to": 'the moment, as "2026-11-20 14:03:07" in UTC; or latest (default)',
    "gtid": "instead of a moment, exactly this GTID set",
}


@task(help=JSON)
def list(_: Context, *, json: bool = False) -> None:  # noqa: A001  fab backup.list
    """Show the full backups, and how far the archive of binary logs is. Changes nothing.

    Exit 0 all is as it should be, 1 the archive is behind or has a gap, or there is no backup, 3
    a manifest is damaged, 4 S3 or the API does not answer.
    """
    from flotilla import config
    from flotilla.backup import operate

    settings = attempt(config.load, json=json)
    found = attempt(lambda: operate.listed(settings), json=json)
    show(found, json=json, text=_board(found))
    if found["archive"]["objection"] or not found["backups"]:
        raise Exit(code=1)


@task(
    help={"host": "where (default: the replica that is nearest to the primary)", **YES, **JSON},
)
def run(_: Context, host: str | None = None, *, yes: bool = False, json: bool = False) -> None:
    """Take a full backup now, on a replica; or finish the one that was cut off there.

    A timer does it every day. Exit 0 done, 2 it was cut off and the same command goes on, 3 refused
    (no replica, no room, another one is at it), 4 unreachable, 5 no such host.
    """
    from flotilla import config
    from flotilla.backup import operate

    settings = attempt(config.load, json=json)
    again = typed("backup.run", host=host)
    done = attempt(
        lambda: operate.run(
            settings,
            host,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=f"backup {done.get('backup')} of {done['host']}")


@task(help={"backup": "which (default: all)", **JSON})
def verify(_: Context, backup: str = "", *, json: bool = False) -> None:
    """Read every byte of a backup, check its checksum, and open it. Changes nothing.

    Exit 0 all is sound, 1 something is not (it is named), 3 no such backup, 4 unreachable.
    """
    from flotilla import config
    from flotilla.backup import operate

    settings = attempt(config.load, json=json)
    told = attempt(lambda: operate.verify(settings, backup, said=said), json=json)
    wrong = [line for lines in told["wrong"].values() for line in lines]
    show(
        told,
        json=json,
        text="\n".join([f"{counted(len(told['verified']), 'backup')} read", *wrong]),
    )
    if wrong:
        raise Exit(code=1)


@task(positional=["host"], help={"host": "the member to replace", **_TO, **YES, **JSON})
def restore(
    _: Context,
    host: str,
    to: str = "latest",
    gtid: str = "",
    *,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Replace all data on a MySQL host by what the cluster had at a moment, from S3 alone.

    Builds it beside the data in use and compares it with its target before anything is replaced;
    what the host had is kept in /var/lib/mysql-files/flotilla. The host boots read-only and follows
    the primary if it may. Exit 0 done, 2 a step failed and the host has what it had, 3 refused
    (a gap, a damaged object, before the first backup, in the future) and nothing touched, 4
    unreachable, 5 no such host or moment.
    """
    from flotilla import config
    from flotilla.backup import operate

    settings = attempt(config.load, json=json)
    again = typed("backup.restore", host, to=to, gtid=gtid)
    done = attempt(
        lambda: operate.restore(
            settings,
            host,
            to=to,
            gtid=gtid,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{host} has what the cluster had: base {done['base']}, {done['replayed']} transactions"
    show(done, json=json, text=f"{text}, {done['seconds']} s")


@task(help={**_TO, **YES, **JSON})
def recover(
    _: Context, to: str = "latest", gtid: str = "", *, yes: bool = False, json: bool = False
) -> None:
    """Make the MySQL cluster again when all of its hosts are gone: launch, restore, name a primary.

    Refused while the primary of the record exists. Exit 0 done and the application serves, 2 a step
    failed and the same command goes on, 3 refused and no data replaced, 4 unreachable, 5 no such
    moment.
    """
    from flotilla import config
    from flotilla.backup import recover as edge

    settings = attempt(config.load, json=json)
    again = typed("backup.recover", to=to, gtid=gtid)
    done = attempt(
        lambda: edge.recover(
            settings,
            to=to,
            gtid=gtid,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=f"{done['primary']} is primary of term {done['term']}")


@task(
    positional=["what"],
    help={
        "what": "DATABASE or DATABASE.TABLE",
        "output": "the file to write, SQL as mysqldump makes it",
        **_TO,
        **JSON,
    },
)
def extract(
    _: Context, what: str, output: str, to: str = "latest", gtid: str = "", *, json: bool = False
) -> None:
    """Write one database or table, as it was at a moment, to a local file. Changes nothing else.

    For a table that somebody dropped: extract it as it was before, look at it, load it. Exit 0
    done, 2 it could not be dumped, 3 refused and nothing touched, 4 unreachable, 5 bad option.
    """
    from flotilla import config
    from flotilla.backup import operate

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate.extract(settings, what, Path(output), to=to, gtid=gtid, said=said),
        json=json,
    )
    show(done, json=json, text=f"{done['file']}: {done['bytes']} bytes, from {done['base']}")


@task(
    help={
        "last": "keep so many of the newest (default 3)",
        "days": "keep the newest of so many days (default 14)",
        "weeks": "keep the newest of so many weeks (default 8)",
        "months": "keep the newest of so many months (default 12)",
        **YES,
        **JSON,
    }
)
def retention(
    _: Context,
    last: int = 3,
    days: int = 14,
    weeks: int = 8,
    months: int = 12,
    *,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Delete full backups that are not to be kept, and binary logs that no kept one needs.

    Hosts may not delete; this is done with the operator's rights. Exit 0 done or nothing to do, 3
    refused and nothing changed, 4 unreachable, 5 bad option.
    """
    from flotilla import config
    from flotilla.backup import operate
    from flotilla.options import within
    from flotilla.rules.retention import Policy

    settings = attempt(config.load, json=json)

    def demand() -> None:
        for name, value in {"last": last, "days": days, "weeks": weeks, "months": months}.items():
            within(f"--{name}", value, 0, 10_000)

    attempt(demand, json=json)
    again = typed("backup.retention", last=last, days=days, weeks=weeks, months=months)
    done = attempt(
        lambda: operate.retention(
            settings,
            Policy(last, days, weeks, months),
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{counted(len(done['kept']), 'backup')} kept, {len(done['dropped'])} dropped"
    show(done, json=json, text=text)


@task(help={**YES, **JSON})
def drill(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Prove that backups restore: to what a replica holds now, and to a random moment.

    Both on a host that is launched for it and ended again, from S3 alone; a timer does the same
    every day. Exit 0 every table is the same, 1 one is not (it is named), 2 a restore failed, 3
    there is no backup, 4 unreachable.
    """
    from flotilla import config
    from flotilla.backup import drill as rehearsal

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: rehearsal.drill(
            settings,
            confirmed=lambda plan: confirm(plan, yes=yes, again="fab backup.drill"),
            said=said,
        ),
        json=json,
    )
    exact = "exact" if done["exact"] else f"differs in {', '.join(done['differ'])}"
    text = f"{exact}: restored in {done['restore_seconds']} s, to {done['moment']} in"
    show(done, json=json, text=f"{text} {done['moment_seconds']} s")
    if not done["exact"]:
        raise Exit(code=1)


@task(
    help={
        "bucket": "the other fleet's bucket of backups, or the copy of it",
        "keys": "the SSM parameter of its keys, such as /acme/production/mysql/backup_keys",
        "region": "where both are (default: the fleet's own region)",
        **YES,
        **JSON,
    }
)
def adopt(
    _: Context, bucket: str, keys: str, region: str = "", *, yes: bool = False, json: bool = False
) -> None:
    """Make another fleet's backups this one's: to go on in another region, or another account.

    Into an empty bucket only. Exit 0 done or nothing to do, 2 cut off and the same command goes on,
    3 refused and nothing changed (our own backups, none there, no keys), 4 unreachable.
    """
    from flotilla import config
    from flotilla.backup import adopt as edge

    settings = attempt(config.load, json=json)
    again = typed("backup.adopt", bucket=bucket, keys=keys, region=region or None)
    done = attempt(
        lambda: edge.adopt(
            settings,
            source=bucket,
            region=region,
            parameter=keys,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{done['objects']} objects, {counted(done['backups'], 'full backup')}"
    show(done, json=json, text=f"{text}, {counted(done['keys'], 'key')}. Next: fab backup.recover")


@task(help={**YES, **JSON})
def rotate_key(_: Context, *, yes: bool = False, json: bool = False) -> None:
    """Seal backups with a new key from now on; the old ones stay, and open what they sealed.

    Exit 0 done, 3 refused and nothing changed, 4 the API does not answer.
    """
    from flotilla import config
    from flotilla.backup import operate

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate.rotate(
            settings,
            confirmed=lambda plan: confirm(plan, yes=yes, again="fab backup.rotate-key"),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=f"key {done['key']} seals; {counted(done['keys'], 'key')} in all")


@task(
    help={
        "output": "the file to write: SQL, gzipped",
        "databases": "comma between (default: all but the server's own)",
        **JSON,
    }
)
def dump(_: Context, output: str, databases: str = "", *, json: bool = False) -> None:
    """Write databases as SQL to a local file, from a replica: to move them to another version.

    For bringing data back, fab backup.restore and fab backup.extract are many times faster. Exit 0
    done, 2 the dump is not whole and its file is gone, 3 no replica, 4 unreachable, 5 bad option.
    """
    from flotilla import config
    from flotilla.backup import logical

    settings = attempt(config.load, json=json)
    names = [name.strip() for name in databases.split(",") if name.strip()]
    done = attempt(lambda: logical.dump(settings, names, Path(output), said=said), json=json)
    show(done, json=json, text=f"{done['file']}: {', '.join(done['databases'])}")


@task(positional=["source"], help={"source": "a file of fab backup.dump", **YES, **JSON})
def load(_: Context, source: str, *, yes: bool = False, json: bool = False) -> None:
    """Run the SQL of a dump on the primary. What it names is replaced.

    Exit 0 done, 2 the server refused a statement and what came before it was done, 3 refused (no
    whole dump, no primary) and nothing changed, 4 unreachable.
    """
    from flotilla import config
    from flotilla.backup import logical

    settings = attempt(config.load, json=json)
    again = typed("backup.load", source)
    done = attempt(
        lambda: logical.load(
            settings,
            Path(source),
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=f"{done['file']} was run on {done['host']}")


def _board(found: dict[str, Any]) -> str:
    rows = [
        f"{one['id']}  {one['host']:9} {one['bytes'] >> 20:7} MiB {one['stored_bytes'] >> 20:7} MiB"
        f"  {one['gtids'][:60]}"
        for one in found["backups"]
    ]
    archive = found["archive"]
    lines = [f"{'backup':27} {'host':9} {'data':>11} {'stored':>11}  holds", *rows]
    if archive["host"]:
        lines.append(f"archive by {archive['host']}, {archive['behind_seconds']} s behind")
    if archive["to"]:
        lines.append(f"restorable to any moment from {archive['from']} to {archive['to']}")
    if archive["objection"]:
        lines.append(f"problem  {archive['objection']}")
    if not rows:
        lines.append("problem  there is no full backup; next: fab backup.run")
    return "\n".join(lines)

"""An operator's commands on backups of Redis: take one, list them, bring one back.

Hosts do the work (``flotilla-redis-backup``, ``redis_node.py restore``), so that data does not
travel through the operator's machine, and whoever loses his connection has not lost half of it.
"""

from __future__ import annotations

import json
import shlex
import time
from contextlib import suppress
from typing import Any

from flotilla.backup import operate, rdb
from flotilla.backup.bucket import Bucket
from flotilla.backup.sealed import DamagedError, Ring
from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.hosts.ssh import Runner
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.redis.operate import LOCK, MOVERS, TOOL, by_itself, opened, verify
from flotilla.redis.status import looked
from flotilla.rules import redis_backup as rules
from flotilla.rules.redis import Member, primary
from flotilla.rules.redis_backup import Manifest, Restore
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import DeadlineError, until
from flotilla.words import counted

BACKUP_TOOL = "/usr/local/sbin/flotilla-redis-backup"
# The hosts' own time limits, and what a slow network takes for all of a host's memory.
BACKUP_SECONDS = 3 * 3600.0
RESTORE_SECONDS = 4000.0
# A restore that was cut off is over after this: its Sentinels wait no longer.
ORDER_SECONDS = 150.0
LOOK_SECONDS = 15.0


def listed(settings: Settings) -> dict[str, Any]:
    """{backups, damaged}: whole backups, newest first, and of which ones the manifest cannot be
    trusted, with the reason.
    """
    store, keys = _stored(settings)
    found, damaged = [], []
    for one in rdb.ids(store):
        try:
            found.append(rdb.read_manifest(store, keys, one))
        except DamagedError as error:
            # Whoever meets it in a restore comes here for another one.
            damaged.append({"id": one, "why": error.what})
    return {"backups": rules.summary(found, time.time()), "damaged": damaged}


def backup(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Take a backup now: {backup, host, keys, bytes, stored_bytes, taken, seconds}.

    Raises Refused with nothing changed, HostFailed.
    """
    command = "fab redis.backup"
    with opened(settings, fresh=True) as (runner, hosts):
        chosen = _saver(runner, hosts)
        confirmed(
            f"{settings.prefix}: back up {_keys(chosen.keys)} of Redis from {chosen.name}, a"
            " replica; clients notice nothing"
        )
        with recorded(settings, command, said) as steps:
            with steps.step(f"save and store on {chosen.name}"):
                told = _on_host(runner, chosen.name, f"{BACKUP_TOOL} run", seconds=BACKUP_SECONDS)
            with steps.step("read its manifest back"):
                store, keys = _stored(settings)
                manifest = rdb.read_manifest(store, keys, told["backup"])
            steps.result = {**told, "host": manifest.host, "keys": manifest.keys}
        return steps.result


def restore(settings: Settings, backup: str, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Replace all data by a backup ("latest" or an id): {backup, host, keys, before, ...}.

    Raises BadOption for what is no id, Refused with the old data served, HostFailed naming what is
    served.
    """
    if backup != rules.LATEST and not rules.is_id(backup):
        raise BadOption(
            f"--from {backup!r} is no backup",
            "it is latest, or a name as 20261120T030000Z-1a2b3c4d",
            "Nothing was changed",
            "fab redis.backups",
        )
    store, keys = _stored(settings)
    manifest = rdb.read_manifest(store, keys, backup)
    if backup == rules.LATEST and not manifest.keys:
        raise Refused(
            f"the latest backup, {manifest.id}, has no keys: it is of a group that was empty",
            "it would replace what there is by nothing",
            "Nothing was changed",
            "fab redis.backups, then fab redis.restore --from ID",
        )
    command = f"fab redis.restore --from {manifest.id}"
    with opened(settings, fresh=True) as (runner, hosts):
        plan = _planned(runner, hosts)
        confirmed(_text(settings, manifest, plan))
        with (
            Lock(settings, MOVERS, reason=command) as movers,
            Lock(settings, LOCK, reason=command) as lock,
            recorded(settings, command, said) as steps,
        ):
            with steps.step("look again"):
                plan = _planned(runner, hosts)
            with steps.step(f"fetch {manifest.id} to {plan.host}, and check it"):
                line = f"{BACKUP_TOOL} fetch --backup {shlex.quote(manifest.id)}"
                _on_host(runner, plan.host, line, seconds=BACKUP_SECONDS)
            movers.check()
            lock.check()
            with steps.step(f"replace the data on {plan.host}; the others copy"):
                told = _replaced(runner, plan, manifest)
            with steps.step("verify"):
                verify(runner, hosts, plan.host, after="the restore", missing=plan.missing)
            steps.result = told | {"taken": manifest.taken, "replaced_keys": plan.keys}
        return steps.result


def _stored(settings: Settings) -> tuple[Bucket, Ring]:
    """The bucket and the keys of what is in there. Raises Refused, Unreachable."""
    ring = operate.ring(settings, settings.parameter("redis", "backup_keys"))
    return operate.bucket(settings), ring


def _saver(runner: Runner, hosts: list[Host]) -> Member:
    """The replica to take a backup from. Raises Refused."""
    found: Member | str = ""

    def ready() -> bool:
        nonlocal found
        members, _ = looked(runner, hosts)
        found = rules.saver(members, primary(members))
        return isinstance(found, Member)

    # Where machines are busy, a host may miss the time it has to answer: no reason to refuse.
    with suppress(DeadlineError):
        until(ready, seconds=LOOK_SECONDS, every=0.5)
    if isinstance(found, Member):
        return found
    raise Refused(found, untouched="Nothing was changed", next="fab redis.status")


def _planned(runner: Runner, hosts: list[Host]) -> Restore:
    """Where to restore. Waits for what a restore that was cut off has left. Raises Refused."""
    found: Restore | str = ""

    def ready() -> bool:
        nonlocal found
        found = rules.restore_on(*looked(runner, hosts))
        return isinstance(found, Restore)

    with suppress(DeadlineError):
        until(ready, seconds=ORDER_SECONDS, every=1.0)
    if isinstance(found, Restore):
        return found
    raise Refused(
        found or "no Redis host answers",
        "a restore begins on the host that everybody copies",
        "Nothing was changed",
        "fab redis.status; docs/runbooks/redis-data-is-lost.md",
    )


def _text(settings: Settings, manifest: Manifest, plan: Restore) -> str:
    ago = rules.age(time.time() - manifest.at)
    lines = [
        f"{settings.prefix}: all data of Redis is replaced by backup {manifest.id}",
        f"  it has {_keys(manifest.keys)} in {manifest.size} bytes, as they were {ago} ago, at",
        f"  {manifest.taken}; what was written since is not in it",
        f"  {plan.host} has {_keys(plan.keys)} now, which are replaced; they are kept there in",
        "  /var/lib/redis/data.before-<time>",
        "  the backup is fetched and checked first, while Redis serves what it has; then",
        f"  {plan.host} is away for as long as it takes to load it, and the other hosts copy it",
    ]
    lines += [f"  {name} cannot be asked, and copies it when it is back" for name in plan.missing]
    return "\n".join(lines)


def _keys(keys: int | None) -> str:
    return "an unknown number of keys" if keys is None else counted(keys, "key")


def _on_host(runner: Runner, host: str, command: str, *, seconds: float) -> dict[str, Any]:
    """What the tool on a host printed. Raises Refused, HostFailed with what it said."""
    result = by_itself(runner, host, command, seconds=seconds)
    if result.rc == 0:
        told: dict[str, Any] = json.loads(result.stdout)
        return told
    what, _, after = result.last_words.partition("Next: ")
    kind = Refused if result.rc == Refused.exit_code else HostFailed
    raise kind(f"{host}: {what.strip()}", next=after or f"fab fleet.logs {host}")


def _replaced(runner: Runner, plan: Restore, manifest: Manifest) -> dict[str, Any]:
    line = f"{TOOL} restore --backup {shlex.quote(manifest.id)}"
    result = by_itself(runner, plan.host, line, seconds=RESTORE_SECONDS)
    if result.rc == 0:
        told: dict[str, Any] = json.loads(result.stdout)
        return told
    why = result.last_words
    if result.rc == Refused.exit_code:
        raise Refused(
            f"called off by {plan.host}: {why}",
            "what is restored must be whole, and everybody must copy it",
            "The data of before is served",
            "fab redis.status",
        )
    raise HostFailed(
        f"{plan.host}: {why}",
        "not every host may have the backup",
        f"Data that was there is in /var/lib/redis of {plan.host}, in data.before-<time>",
        "fab redis.status, then the same command again",
    )

"""What is wrong with the databases and caches."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from flotilla.rules import redis as redis_rules
from flotilla.rules.redis import Member
from flotilla.rules.restore_drill import LATE
from flotilla.rules.status_certificates import ENDING, late
from flotilla.rules.status_finding import FAILED_OVER, NO_WRITES, Finding, Severity, down, risk
from flotilla.rules.status_world import Backups, World

LAG_SECONDS = 10.0
# A timer takes one a day; an hour may be lost to a host that was off, and the run takes its time.
BACKUP_HOURS = 27.0
# A new fleet's first one is taken some minutes after its hosts were configured.
YOUNG_SECONDS = 1800.0
# A new cluster's archive has begun by then, and an old record of it is of no other fleet any more.
ARCHIVED_SECONDS = 300.0
REDIS_LAG_BYTES = 8 * 1024 * 1024

REPLICA, REDIS = "mysql-replica-stopped", "redis-failed-over"
FULL = "redis-memory-is-full"
NO_BACKUP, NO_ARCHIVE = "backup-is-missing", "binlog-archive-stops"
NO_DRILL = "restore-drill-fails"
NO_ANSWER = "aws-api-does-not-answer"
KEPT_OUT, NO_FAILOVER = "mysql-host-is-kept-out", "mysql-failover-is-refused"


def mysql(world: World) -> Iterator[Finding]:
    """What the cluster's own rules object to, lag, and writes that nobody acknowledges."""
    if world.is_blind:
        return
    if world.mysql is None:
        if world.mysql_error and not all(host.silent for host in world.by_role("mysql")):
            what = f"the MySQL cluster could not be looked at: {world.mysql_error}"
            yield risk("mysql", what, "fab mysql.status")
        return
    yield from _problems(world, world.mysql)
    yield from _members(world.mysql)
    yield from _certificates(world.mysql, world)


def _problems(world: World, cluster: Mapping[str, Any]) -> Iterator[Finding]:
    silent = {host.name for host in world.hosts if host.silent}
    severity = Severity.RISK if _takes_writes(cluster) else Severity.DOWN
    for problem in cluster["problems"]:
        if _about(problem, silent):
            continue
        page = _page(problem, cluster)
        if page == NO_FAILOVER:
            yield risk("mysql", problem, "fab mysql.unpause", page)
        else:
            yield Finding(severity, "mysql", problem, cluster["next"] or "fab mysql.status", page)
    if cluster.get("blocked_until"):
        what = "nobody has looked at the last failover, and until then there is no second one"
        yield risk("mysql", what, "fab mysql.history --acknowledge", FAILED_OVER)


def _takes_writes(cluster: Mapping[str, Any]) -> bool:
    """Whether the primary of the record does; a silent one is told of as a host."""
    primary = next((m for m in cluster["members"] if m["name"] == cluster["primary"]), None)
    return primary is not None and bool(primary.get("writable", True))


def _page(problem: str, cluster: Mapping[str, Any]) -> str:
    """The run-book for a sentence of ``fab mysql.status``."""
    if "fab mysql.rejoin" in problem or "fab mysql.rebuild" in problem:
        return KEPT_OUT
    if cluster.get("paused") and "paused" in problem:
        return NO_FAILOVER
    return REPLICA if _takes_writes(cluster) else NO_WRITES


def _members(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    for member in cluster["members"]:
        lag = member.get("lag_seconds") or 0
        if lag >= LAG_SECONDS:
            what = f"{member['name']} is {lag:.0f} s behind the primary"
            after = f"fab fleet.logs {member['name']} --unit mysql"
            yield risk(member["name"], what, after, REPLICA)
        if member["role"] == "primary" and member.get("acknowledging_replicas") == 0:
            what = f"no replica acknowledges writes, so writes on {member['name']} wait"
            yield down(member["name"], what, "fab mysql.ensure", NO_WRITES)


def _certificates(cluster: Mapping[str, Any], world: World) -> Iterator[Finding]:
    """Servers whose host has a good one and that did not take it; a server's own, of before, lasts
    ten years.
    """
    told = late(world)
    known = {host.name: host.report.tls for host in world.hosts if host.report}
    for member in cluster["members"]:
        if not member.get("certificate") or member["name"] in told:
            continue
        begins, ends = member["certificate"]
        name, hours = member["name"], (ends - world.at) / 3600
        # Its own dates do not tell how long it was to last; a host that was configured before
        # hosts said that has none that was dated otherwise.
        tls = known.get(name)
        whole = tls.hours if tls and tls.hours else (ends - begins) / 3600
        is_known = tls is None or not tls.error
        if hours <= 0:
            what = f"{name}: its certificate has ended: clients and replicas refuse it"
        elif is_known and hours < whole * redis_rules.LATE:
            what = f"{name}: its certificate ends in {hours:.0f} h and was not renewed"
        else:
            continue
        yield risk(name, what, f"fab fleet.logs {name} --unit flotilla-tls", ENDING)


def backups(world: World) -> Iterator[Finding]:
    """A full backup that is too old, and binary logs that are not archived."""
    found = world.backups
    ages = [host.age_seconds for host in world.by_role("mysql")]
    if found is None or not ages:
        return
    if found.silent:
        what = f"S3 does not tell what is backed up: {found.silent}"
        yield risk("backups", what, "fab backup.list", NO_ANSWER)
    else:
        # One that went wrong did so however young its hosts are.
        yield from _drills(found, max(ages))
        yield from _full(found, max(ages))
    if found.objection and max(ages) >= ARCHIVED_SECONDS:
        after = "fab fleet.logs mysql --unit flotilla-archive"
        yield risk("backups", found.objection, after, NO_ARCHIVE)


def _full(found: Backups, age: float) -> Iterator[Finding]:
    """None, or one that is too old; ``age`` is of the oldest host."""
    if age < YOUNG_SECONDS:
        return
    after = "fab fleet.logs mysql --unit flotilla-backup"
    if found.newest is None:
        yield risk("backups", "there is no full backup", "fab backup.run", NO_BACKUP)
    elif (hours := (found.at - found.newest) / 3600) > BACKUP_HOURS:
        yield risk("backups", f"the newest full backup is {hours:.0f} h old", after, NO_BACKUP)


def _drills(found: Backups, age: float) -> Iterator[Finding]:
    """A restore drill that went wrong, or that nobody made; ``age`` is of the oldest host."""
    last = found.drilled
    if last and last.wrong:
        yield risk("backups", last.wrong, "fab backup.verify", NO_DRILL)
        return
    due = found.newest is not None and age > LATE.total_seconds()
    if due and last is None:
        yield risk("backups", "no restore drill was ever made", "fab backup.drill", NO_DRILL)
    elif due and last and (seconds := found.at - last.at) > LATE.total_seconds():
        what = f"the newest restore drill is {seconds / 3600:.0f} h old"
        yield risk("backups", what, "fab backup.drill", NO_DRILL)


def redis(world: World) -> Iterator[Finding]:
    """What the group's own rules object to, and replicas far behind."""
    members = world.redis
    for name, why in world.redis_errors.items():
        yield risk(name, f"{name}: {why}", f"fab fleet.logs {name} --unit redis-server")
    if not members:
        return
    chosen = redis_rules.primary(members)
    # Hosts that do not answer at all are told of once, with their hosts.
    for problem in redis_rules.problems(members, {}):
        name = problem.partition(":")[0]
        is_host = any(name == member.name for member in members)
        severity = Severity.RISK if chosen else Severity.DOWN
        after = f"fab fleet.logs {name if is_host else 'redis'} --unit redis-sentinel"
        yield Finding(severity, name if is_host else "redis", problem, after, REDIS)
    yield from _redis_ends(members, late(world))
    for member in members:
        if chosen and member.role == "replica" and member.offset is not None:
            behind = (chosen.offset or 0) - member.offset
            if behind > REDIS_LAG_BYTES:
                what = f"{member.name} is {behind / 1e6:.0f} MB behind {chosen.name}"
                yield risk(member.name, what, f"fab fleet.logs {member.name} --unit redis-server")


def _redis_ends(members: Sequence[Member], told: Container[str]) -> Iterator[Finding]:
    """What is all right now and will not stay so; of hosts that are ``told`` of, not again."""
    for problem in redis_rules.fullness(members):
        yield risk(problem.partition(":")[0], problem, "fab redis.status", FULL)
    for problem in redis_rules.certificates(members):
        name = problem.partition(":")[0]
        if name in told:
            continue
        yield risk(name, problem, f"fab fleet.logs {name} --unit flotilla-tls", ENDING)


def redis_backups(world: World) -> Iterator[Finding]:
    """A backup of Redis that is too old, or none."""
    found = world.redis_backups
    age = max((host.age_seconds for host in world.by_role("redis")), default=0.0)
    if found is None or age < YOUNG_SECONDS:
        return
    if found.newest is None:
        yield risk("redis", "there is no backup of Redis", "fab redis.backup", NO_BACKUP)
    elif (hours := (found.at - found.newest) / 3600) > BACKUP_HOURS:
        what = f"the newest backup of Redis is {hours:.0f} h old"
        yield risk("redis", what, "fab redis.backup", NO_BACKUP)


def _about(problem: str, names: set[str]) -> bool:
    return any(problem.startswith((f"{name}:", f"{name} ")) for name in names)

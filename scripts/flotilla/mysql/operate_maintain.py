"""Commands that work on every database host in turn while the application goes on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from flotilla.aws.resize import retype
from flotilla.hosts import packages
from flotilla.lock import Lock
from flotilla.mysql import operate_rebuild as hands
from flotilla.mysql.ensure import refused
from flotilla.mysql.maintain import Maintenance, Work, whole
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import Session, session
from flotilla.mysql.switchover import Moved
from flotilla.rules import mysql_maintain as rules
from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_maintain import Need, Rolling
from flotilla.rules.packages import upgrades
from flotilla.settings import Settings

# The same lock as a deploy's and provision's: none may move hosts under the other.
LOCK = "deploy"
UPGRADE_SECONDS = 900.0

# Every package of the server and its clients that is installed, in the form apt takes.
_INSTALLED = packages.installed("'mysql*'")
# What decides how the server runs: whatever changed after it was started was not read by it. Of a
# package's file only the time of its inode tells when it came; the other is when it was built.
_CHANGED = (
    'start="$(systemctl show mysql -P ExecMainStartTimestamp)";'
    " find /etc/mysql/mysql.conf.d/zz-flotilla.cnf /etc/systemd/system/mysql.service.d -type f"
    ' -newermt "$start";'
    ' find /usr/sbin/mysqld -newerct "$start"'
)


def patch(settings: Settings, *, restart: bool, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Upgrade MySQL's packages and restart what needs it: {changed, hosts, moved, seconds}.

    With ``restart``, every host is restarted. Settings are written by ``fab fleet.configure``.
    Raises Refused with nothing changed, HostFailed naming the host that did not come back.
    """
    with session(settings, fresh=True) as opened:
        needed = _needs(opened, restart=restart)
        refusal = rules.why_not_patch(needed.values())
        if refusal:
            raise refused(refusal)
        reasons = {name: need.reasons for name, need in needed.items()}

        def work(name: str) -> None:
            hands.stop(opened, name)
            if needed[name].upgrades:
                opened.runner.run(name, _upgrade(settings), sudo=True, seconds=UPGRADE_SECONDS)
            hands.start(opened, name)

        return _roll(opened, "fab mysql.patch", reasons, work, confirmed=confirmed, said=said)


def resize(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Give every host the type that fleet.yml names: {changed, hosts, moved, seconds}.

    Raises as ``patch`` does.
    """
    to = settings.tiers.mysql.type
    with session(settings, fresh=True) as opened:
        present = {host.name: host.type for host in opened.snapshot.by_role("mysql")}
        wrong = rules.types(present, to)
        reasons = {name: (f"{kind} -> {to}",) for name, kind in wrong.items()}

        def work(name: str) -> None:
            host = opened.snapshot.host(name)
            hands.stop(opened, name)
            retype(settings, host.instance_id, before=wrong[name], to=to)
            hands.booted(opened, name)
            hands.start(opened, name)

        return _roll(opened, "fab mysql.resize", reasons, work, confirmed=confirmed, said=said)


def _roll(
    opened: Session,
    command: str,
    reasons: Mapping[str, tuple[str, ...]],
    work: Work,
    *,
    confirmed: Confirmed,
    said: Said,
) -> dict[str, Any]:
    if not reasons:
        return _outcome({}, None, {})
    plan = _plan(opened, list(reasons))
    confirmed(_text(opened.settings, command, plan, reasons))
    with (
        Lock(opened.settings, LOCK, reason=command) as lock,
        recorded(opened.settings, command, said) as steps,
    ):
        moved = Maintenance(opened, lock, steps, work).run(plan)
        steps.result = _outcome(reasons, moved, steps.seconds)
    return steps.result


def _plan(opened: Session, hosts: list[str]) -> Rolling:
    plan = whole(opened, hosts)
    if isinstance(plan, Refusal):
        raise refused(plan)
    return plan


def _needs(opened: Session, *, restart: bool) -> dict[str, Need]:
    """By host name, what each host needs; hosts that need nothing are left out."""
    hosts = opened.snapshot.by_role("mysql")
    seen = opened.runner.run_on(hosts, _survey(opened.settings), sudo=True, seconds=UPGRADE_SECONDS)
    seen.raise_errors()
    found = {}
    for name, result in seen.results.items():
        lines = result.stdout.splitlines()
        newer = [line for line in lines if line.startswith("/")]
        need = rules.needs(name, upgrades(lines), newer, anyway=restart)
        if need:
            found[name] = need
    return found


def _survey(settings: Settings) -> str:
    """Prints a line for each package that would be upgraded, and the path of each newer file."""
    return f"set -e; {packages.planned(_INSTALLED, options=_suite(settings))}; {_CHANGED}"


def _upgrade(settings: Settings) -> str:
    return packages.upgrade(_INSTALLED, options=_suite(settings))


def _suite(settings: Settings) -> str:
    return f"-t {shlex.quote(settings.mysql.apt.suite)}"


def _text(
    settings: Settings, command: str, plan: Rolling, reasons: Mapping[str, tuple[str, ...]]
) -> str:
    lines = [f"{settings.prefix}: {command} on {len(reasons)} hosts, one after the other"]
    lines += [f"  {step}" for step in rules.steps(plan)]
    lines += [f"  {name}: {why}" for name, whys in sorted(reasons.items()) for why in whys]
    return "\n".join(lines)


def _outcome(
    reasons: Mapping[str, tuple[str, ...]], moved: Moved | None, seconds: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "changed": bool(reasons),
        "hosts": {name: list(whys) for name, whys in reasons.items()},
        "moved": {"term": moved.term, "old": moved.old, "new": moved.new} if moved else None,
        "seconds": dict(seconds),
    }

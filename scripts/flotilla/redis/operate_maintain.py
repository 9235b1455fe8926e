"""Commands that work on every Redis host in turn while the application goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flotilla.errors import HostFailed, Refused
from flotilla.hosts import packages
from flotilla.hosts.ssh import Runner
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.redis.maintain import Maintenance, in_order, not_in_order
from flotilla.redis.operate import LOCK, MOVERS, TOOL, opened
from flotilla.redis.status import looked
from flotilla.rules import redis_maintain as rules
from flotilla.rules.redis_maintain import SENTINEL, SERVER, Need
from flotilla.settings import Settings
from flotilla.snapshot import Host

COMMAND = "fab redis.patch"
UPGRADE_SECONDS = 900.0
# Loading a large append-only file takes its time.
START_SECONDS = 900.0

# Every package of Redis that is installed, in the form apt takes.
_INSTALLED = packages.installed("'redis*'")
_UPGRADE = packages.upgrade(_INSTALLED)
# What is on the disk and not in the running service. Of a package's file only the time of its inode
# tells when it came; the other is when it was built. All of Redis is one program under many names,
# so links are followed. Seconds alone would not do: a program that came and was started within the
# same one would be newer than itself.
_NEWER = """\
for service in {services}; do
  start="$(systemctl show "$service" -P ExecMainStartTimestamp --timestamp=us+utc)"
  unit="$(systemctl show "$service" -P FragmentPath)"
  find -L "/usr/bin/$service" "$unit" -newerct "$start" -printf "newer $service %p\\n"
  find "/etc/systemd/system/$service.service.d" -type f -newermt "$start" \
    -printf "newer $service %p\\n"
done
unread="$({tool} unread)"
for setting in $unread; do echo "unread $setting"; done
"""
# In one piece: a host whose operator is cut off comes back all the same. What apt says goes to a
# file, for a pipe that nobody reads any more would end it half-way.
_WORK = """\
trap '' HUP PIPE
log=/var/log/flotilla-redis-patch.log
rc=0
systemctl stop {services} && {upgrade} >"$log" 2>&1 || rc=$?
systemctl daemon-reload
systemctl start {services} || exit
[ "$rc" = 0 ] || {{ tail -n 1 "$log" >&2; exit "$rc"; }}
"""


def patch(settings: Settings, *, restart: bool, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Upgrade Redis' packages and restart what needs it: {changed, hosts, moves, seconds}.

    With ``restart``, every host is restarted. Settings are written by ``fab fleet.configure``.
    Raises Refused with nothing changed, HostFailed naming the host that did not come back.
    """
    with opened(settings, fresh=True) as (runner, hosts):
        text, needed = _plan(settings, runner, hosts, restart=restart)
        if not needed:
            return _outcome({}, [], {})
        confirmed(text)
        with (
            Lock(settings, MOVERS, reason=COMMAND) as movers,
            Lock(settings, LOCK, reason=COMMAND) as lock,
            recorded(settings, COMMAND, said) as steps,
        ):
            run = Maintenance(
                runner,
                hosts,
                (movers, lock),
                steps,
                work=lambda need: _work(runner, need),
                check=lambda need: _check(runner, need),
            )
            moves = run.run(needed)
            steps.result = _outcome(needed, moves, steps.seconds)
    return steps.result


def _plan(
    settings: Settings, runner: Runner, hosts: list[Host], *, restart: bool
) -> tuple[str, dict[str, Need]]:
    """What is to be done in words, and by host name. Raises Refused where it may not be."""
    everybody = {host.name: Need(host.name, (), (), (SERVER, SENTINEL)) for host in hosts}
    first = in_order(lambda: rules.next_step(*looked(runner, hosts), everybody))
    if isinstance(first, str):
        raise not_in_order(first)
    needed = _needs(runner, hosts, restart=restart)
    series = rules.other_series(needed.values())
    if series:
        raise Refused(
            f"this would change the series: {', '.join(series)}",
            "a server of the older series cannot follow one of the newer, so there is no way back",
            "Nothing was changed",
            "rehearse it in the lab, then see docs/runbooks/redis-maintenance.md",
        )
    members, _ = looked(runner, hosts)
    head = f"{settings.prefix}: {COMMAND} on {len(needed)} hosts, one after the other"
    return "\n".join([head, *(f"  {line}" for line in rules.plan(members, needed))]), needed


def _needs(runner: Runner, hosts: Sequence[Host], *, restart: bool) -> dict[str, Need]:
    """By host name, what each host needs; hosts that need nothing are left out."""
    survey = f"set -e\n{packages.planned(_INSTALLED)}\n{newer((SERVER, SENTINEL))}"
    seen = runner.run_on(hosts, survey, sudo=True, seconds=UPGRADE_SECONDS)
    try:
        seen.raise_errors()
    except HostFailed as error:
        raise Refused(
            error.what,
            "what a host needs is not known",
            "Nothing was changed",
            "fab fleet.configure --limit redis",
        ) from error
    found = {
        name: rules.need(name, result.stdout.splitlines(), anyway=restart)
        for name, result in seen.results.items()
    }
    return {name: need for name, need in found.items() if need}


def newer(services: Sequence[str]) -> str:
    """A script that prints a line for each thing that a running service does not have yet."""
    return _NEWER.format(services=" ".join(services), tool=TOOL)


def _work(runner: Runner, need: Need) -> None:
    """Stop, upgrade and start. A host that could not be upgraded runs with what it had."""
    script = _WORK.format(
        services=" ".join(need.services), upgrade=_UPGRADE if need.upgrades else ":"
    )
    runner.run(need.name, script, sudo=True, seconds=UPGRADE_SECONDS + START_SECONDS)


def _check(runner: Runner, need: Need) -> None:
    """Nothing that was restarted may be older than what is on the disk."""
    script = f"set -e\n{newer(need.services)}"
    left = rules.need(need.name, runner.run(need.name, script, sudo=True).stdout.splitlines())
    if left:
        raise HostFailed(f"{need.name} was restarted, and still {'; '.join(left.reasons)}")


def _outcome(
    needed: Mapping[str, Need], moves: list[dict[str, Any]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "changed": bool(needed),
        "hosts": {name: list(need.reasons) for name, need in needed.items()},
        "moves": moves,
        "seconds": dict(seconds),
    }

"""Commands that work on every load balancer in turn while clients are served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flotilla.errors import HostFailed, Refused
from flotilla.hosts import packages
from flotilla.hosts.ssh import Runner
from flotilla.lb.maintain import Maintenance
from flotilla.lb.operate import LOCK as ADDRESS
from flotilla.lb.reach import reached
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.replace.pair import Pair
from flotilla.rules import lb_maintain as rules
from flotilla.rules.lb_maintain import STALE, Need
from flotilla.rules.replace_pair import Balancer
from flotilla.settings import Settings

COMMAND = "fab lb.patch"
# The same lock as a deploy's and provision's: none may move hosts under the other.
LOCK = "deploy"
UPGRADE_SECONDS = 900.0
RESTART_SECONDS = 120.0

# Both, and the libraries they are linked with: what TLS needs mending in is libssl. libsystemd only
# passes on what is logged, and would bring all of systemd along.
_INSTALLED = packages.installed(
    "haproxy keepalived"
    " $(dpkg-query -W -f '${Depends}\\n' haproxy keepalived | tr ',|' '\\n\\n'"
    " | sed -n '/libsystemd/d; s/^ *\\(lib[^ ]*\\).*/\\1/p' | sort -u) 2>/dev/null"
)
# A file that was replaced while a process has it open is "(deleted)" there. HAProxy's main process
# starts itself anew at every reload.
_STALE = (
    "for unit in haproxy keepalived; do"
    ' sed -n "s|^.* \\(/usr/[^ ]*\\) (deleted)\\$|' + STALE + ' $unit \\1|p"'
    ' "/proc/$(systemctl show "$unit" -P MainPID)/maps" 2>/dev/null | sort -u; done; true'
)
_RESTART = "systemctl restart haproxy && systemctl restart keepalived"


def patch(settings: Settings, *, restart: bool, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Upgrade the packages of HAProxy and keepalived: {changed, hosts, moved, owner, seconds}.

    The one with the address comes last, after it has left. With ``restart``, all are restarted.
    Raises Refused with nothing changed, HostFailed naming the host that did not come back.
    """
    pair = Pair(settings, say=said)
    hosts = _in_order(pair)
    with reached(settings) as (runner, _):
        needed = _needs(runner, [host.name for host in hosts], restart=restart)
        reasons = {name: need.reasons for name, need in needed.items()}
        if not reasons:
            return _outcome({}, next(h.name for h in hosts if h.owner), [], {})
        lines = [f"{settings.prefix}: {COMMAND} on {len(reasons)} hosts, one after the other"]
        confirmed("\n".join([*lines, *(f"  {step}" for step in rules.steps(hosts, reasons))]))

        def work(name: str) -> None:
            _work(runner, name, needed[name])

        with (
            Lock(settings, LOCK, reason=COMMAND) as lock,
            recorded(settings, COMMAND, said) as steps,
        ):
            moving = _Moving(settings, pair)
            run = Maintenance(moving, steps.step, work, guard=lock.check)
            owner = run.run(sorted(reasons))
            steps.result = _outcome(reasons, owner, run.moved, steps.seconds)
        return steps.result


class _Moving:
    """The pair; the address moves under the lock that ``fab lb.failover`` takes, and only then:
    whoever has a sick load balancer cannot wait for packages.
    """

    def __init__(self, settings: Settings, pair: Pair) -> None:
        self._settings = settings
        self._pair = pair

    def look(self) -> list[Balancer]:
        return self._pair.look()

    def move(self, source: Balancer) -> None:
        with Lock(self._settings, ADDRESS, reason=COMMAND):
            self._pair.move(source)


def _in_order(pair: Pair) -> list[Balancer]:
    hosts = pair.look()
    if found := rules.disorder(hosts):
        raise Refused(
            "; ".join(found),
            "while one is away another one must be able to serve alone",
            "Nothing was changed",
            "fab lb.status",
        )
    return hosts


def _needs(runner: Runner, names: Iterable[str], *, restart: bool) -> dict[str, Need]:
    """By name, what each one needs; those that need nothing are left out."""
    seen = runner.run_on(names, survey(fresh=True), sudo=True, seconds=UPGRADE_SECONDS)
    seen.raise_errors()
    found = {
        name: rules.need(result.stdout.splitlines(), anyway=restart)
        for name, result in seen.results.items()
    }
    return {name: need for name, need in found.items() if need}


def _work(runner: Runner, name: str, need: Need) -> None:
    """Upgrade and restart; raises HostFailed where something is left to do afterwards."""
    if need.upgrades:
        runner.run(name, UPGRADE, sudo=True, seconds=UPGRADE_SECONDS)
    # Servers keep their drain: role haproxy's unit saves the states at the stop.
    runner.run(name, _RESTART, sudo=True, seconds=RESTART_SECONDS)
    lines = runner.run(name, survey(fresh=False), sudo=True, seconds=UPGRADE_SECONDS).stdout
    left = rules.need(lines.splitlines())
    if left:
        raise HostFailed(
            f"{name}: after the work there is left: {'; '.join(left.reasons)}",
            untouched="The others were left as they are",
            next=f"fab fleet.run --on {name} --sudo 'apt-mark showhold'",
        )


def survey(*, fresh: bool) -> str:
    """Prints a line for each package that would be upgraded, and for each file that was replaced
    under a process.
    """
    return f"set -e; {packages.planned(_INSTALLED, fresh=fresh)}; {_STALE}"


UPGRADE = packages.upgrade(_INSTALLED)


def _outcome(
    reasons: dict[str, tuple[str, ...]], owner: str, moved: list[str], seconds: dict[str, float]
) -> dict[str, Any]:
    return {
        "changed": bool(reasons),
        "hosts": {name: list(whys) for name, whys in reasons.items()},
        "moved": moved,
        "owner": owner,
        "seconds": dict(seconds),
    }

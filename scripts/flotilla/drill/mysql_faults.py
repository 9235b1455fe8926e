"""Faults of a MySQL drill: how each is made, and how it is undone.

What a root shell or the EC2 API can do is done that way, on any fleet; the network is asked of
``Outside``, where there is one. An undo never fails for a host that is down: whoever fenced the old
primary has stopped it, and putting it back is not the fault's business.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flotilla.agent.bundle import bundle
from flotilla.agent.ledger import Order
from flotilla.aws.session import client, described
from flotilla.drill.faults import Outside, undo
from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.hosts.ssh import Runner
from flotilla.ledger import order
from flotilla.mysql.accounts import Secrets
from flotilla.rules.drill_mysql import Aim, Fault
from flotilla.settings import Settings
from flotilla.snapshot import Host

UNIT = "mysql.service"
DATA = "/var/lib/mysql"
BALLAST = f"{DATA}/flotilla-drill-ballast"
SHELL_SECONDS = 60.0
CROWD_SECONDS = 60.0
# More than any server's max_connections here, fewer than a host's file descriptors.
CROWD = 5000

# The whole rest first, where the file system can; then what that left over.
_FILL = f"""\
fallocate -l "$(df --output=avail -B1 {DATA} | tail -1)" {BALLAST} 2>/dev/null
dd if=/dev/zero of={BALLAST} bs=64k oflag=append conv=notrunc 2>/dev/null
[ "$(df --output=avail -B1 {DATA} | tail -1)" -lt 1048576 ]
"""
LOADER = (
    "import base64, os, runpy, sys, tempfile\n"
    "folder = tempfile.TemporaryDirectory()\n"
    "path = os.path.join(folder.name, 'crowd.zip')\n"
    "open(path, 'wb').write(base64.b64decode(sys.stdin.readline()))\n"
    "sys.path.insert(0, path)\n"
    "runpy.run_module('flotilla.agent.crowd', run_name='__main__')\n"
)


@dataclass(slots=True)
class Site:
    """What a fault has to work with. ``apps`` are where clients live; ``give`` makes a member
    primary, as planned.
    """

    settings: Settings
    runner: Runner
    members: Mapping[str, Host]
    apps: Mapping[str, Host]
    known: Secrets
    give: Callable[[str], None]
    outside: Outside | None = None
    undoing: list[Callable[[], None]] = field(default_factory=list)

    def on(self, host: str, command: str) -> None:
        """Run a command as root. Raises HostFailed, Unreachable."""
        self.runner.run(host, command, sudo=True, seconds=SHELL_SECONDS)

    def later(self, host: str, command: str) -> None:
        """Undo by a command; a host that is down has nothing left to undo."""

        def tell() -> None:
            with suppress(Unreachable):
                self.on(host, command)

        self.undoing.append(tell)


def _kill(site: Site, aim: Aim) -> None:
    site.on(aim.target, f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")


def _freeze(site: Site, aim: Aim) -> None:
    # A unit that systemd has started anew meanwhile runs already: CONT does nothing to it.
    site.later(aim.target, f"systemctl kill --kill-whom=main --signal=CONT {UNIT} || true")
    site.on(aim.target, f"systemctl kill --kill-whom=main --signal=STOP {UNIT}")


def _restart(site: Site, aim: Aim) -> None:
    site.on(aim.target, f"systemctl restart --no-block {UNIT}")


def _fill(site: Site, aim: Aim) -> None:
    site.later(aim.target, f"rm -f {BALLAST}")
    site.on(aim.target, _FILL)


def _stop(site: Site, aim: Aim) -> None:
    host = site.members[aim.target]
    with described(site.settings, f"stop {host.name}"):
        client(site.settings, "ec2").stop_instances(InstanceIds=[host.instance_id], Force=True)


def _crowd(site: Site, _: Aim) -> None:
    """Take every connection from the first application host, through its HAProxy."""
    host = next(iter(site.apps.values()))
    wanted: Order = replace(order(site.settings, site.known), writers=CROWD)
    quoted = "'" + LOADER.replace("'", "'\"'\"'") + "'"
    channel: Any = site.runner.stream(host, f"exec python3 -c {quoted}")
    site.undoing.append(channel.close)
    channel.settimeout(CROWD_SECONDS)
    package = base64.b64encode(bundle("flotilla.agent.crowd", carry=("pymysql",)))
    try:
        channel.sendall(package + b"\n" + json.dumps(asdict(wanted)).encode() + b"\n")
        said = channel.makefile("rb").readline().decode(errors="replace")
    except OSError as error:
        raise Unreachable(f"{host.name}: no answer while taking connections ({error})") from error
    if not said.startswith("full"):
        raise HostFailed(f"{host.name}: the server's connections were not used up: {said!r}")


def _outside(kind: str) -> Callable[[Site, Aim], None]:
    def strike(site: Site, aim: Aim) -> None:
        outside = site.outside
        if outside is None:
            raise FlotillaError(f"nothing here has the power over the network that {kind} takes")
        site.undoing.append(lambda: outside.heal(aim.target))
        outside.strike(aim.target, kind, **aim.options)

    return strike


def _switchover(site: Site, aim: Aim) -> None:
    site.give(aim.target)


STRIKES: Mapping[str, Callable[[Site, Aim], None]] = {
    "kill": _kill,
    "freeze": _freeze,
    "partition": _outside("cut"),
    "partition-replicas-only": _outside("cut"),
    "stop-instance": _stop,
    "zone": _outside("zone"),
    "switchover": _switchover,
    "restart": _restart,
    "disk-full": _fill,
    "too-many-connections": _crowd,
}


def strike(site: Site, fault: Fault, aim: Aim) -> None:
    """Make the fault. Raises FlotillaError; what was done by then is undone by ``undone``."""
    STRIKES[fault.name](site, aim)


@contextmanager
def undone(site: Site) -> Iterator[None]:
    """Whatever was struck in the block is undone at its end, also by Ctrl-C."""
    try:
        yield
    finally:
        undo(site.undoing)

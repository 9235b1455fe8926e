"""The faults that only MySQL has, beside those of ``drill.strikes``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from flotilla.agent.bundle import loaded
from flotilla.agent.ledger_mysql import Order
from flotilla.drill import strikes
from flotilla.drill.strikes import Strike
from flotilla.errors import HostFailed, Unreachable
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.ledger import order
from flotilla.rules.drill_fault import Aim

UNIT = "mysql.service"
DATA = "/var/lib/mysql"
BALLAST = f"{DATA}/flotilla-drill-ballast"
CROWD_SECONDS = 60.0
# More than any server's max_connections here, fewer than a host's file descriptors.
CROWD = 5000

# The whole rest first, where the file system can; then what that left over.
_FILL = f"""\
fallocate -l "$(df --output=avail -B1 {DATA} | tail -1)" {BALLAST} 2>/dev/null
dd if=/dev/zero of={BALLAST} bs=64k oflag=append conv=notrunc 2>/dev/null
[ "$(df --output=avail -B1 {DATA} | tail -1)" -lt 1048576 ]
"""


@dataclass(slots=True, kw_only=True)
class Site(strikes.Site):
    """A site whose clients have passwords."""

    known: Secrets


def _fill(site: Site, aim: Aim) -> None:
    site.later(aim.target, f"rm -f {BALLAST}")
    site.on(aim.target, _FILL)


def _crowd(site: Site, _: Aim) -> None:
    """Take every connection from the first application host, through its HAProxy."""
    host = next(iter(site.apps.values()))
    wanted: Order = replace(order(site.settings, site.known), writers=CROWD)
    command, package = loaded("flotilla.agent.crowd", wanted.carry)
    channel: Any = site.runner.stream(host, command)
    site.undoing.append(channel.close)
    channel.settimeout(CROWD_SECONDS)
    try:
        channel.sendall(f"{package}\n{json.dumps(asdict(wanted))}\n".encode())
        said = channel.makefile("rb").readline().decode(errors="replace")
    except OSError as error:
        raise Unreachable(f"{host.name}: no answer while taking connections ({error})") from error
    if not said.startswith("full"):
        raise HostFailed(f"{host.name}: the server's connections were not used up: {said!r}")


STRIKES: Mapping[str, Strike] = {
    **strikes.STRIKES,
    "disk-full": _fill,
    "too-many-connections": _crowd,
}

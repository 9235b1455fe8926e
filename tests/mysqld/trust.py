"""An authority with an issuer for role mysql, and what hosts make with that by the role's files."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flotilla import environment
from flotilla.rules import authority

_ROLES = environment.root() / "roles"
sys.path[:0] = [str(_ROLES / "mysql" / "files"), str(_ROLES / "tls" / "files")]

import mysql_tls  # noqa: E402  the role's own file
import tls_leaf  # noqa: E402  the role's own file

__all__ = ["OURS", "Trust", "mysql_tls"]

ZONE = "mysql.flotilla.lab.internal"
NETWORK = "127.80.0.0/13"
# What clients connect to where a test has a proxy of its own; on a host that has a name.
PROXIES = ["127.84.0.1", "127.84.0.2"]


class Trust:
    """A root, an issuer below it, and leaves of both."""

    def __init__(self) -> None:
        past = datetime.now(UTC) - timedelta(days=30)
        self.root = authority.root("flotilla", "lab", authority.new_key(), past)
        self.issuer = self.issued(past)

    def issued(self, now: datetime) -> authority.Authority:
        """An issuer of that age."""
        return authority.issuer(ZONE, NETWORK, self.root, authority.new_key(), now)

    def served(self, name: str, address: str, now: datetime | None = None, **changes: Any) -> bytes:
        """What a host of that name serves: /etc/mysql/tls/server.pem. ``now`` is when it was made,
        ``changes`` are to what it is for.
        """
        wanted = tls_leaf.Settings([ZONE, f"{name}.{ZONE}"], [address, *PROXIES], 168, "root")
        made = tls_leaf.made(replace(wanted, **changes), *self.issuer, now or datetime.now(UTC))
        return bytes(made[0]) + self.root.public().encode()

    def home(self, folder: Path, name: str, address: str) -> Path:
        """What role tls leaves on a host: /etc/flotilla/tls."""
        folder.mkdir(parents=True, exist_ok=True)
        wanted = tls_leaf.Settings([ZONE, f"{name}.{ZONE}"], [address, *PROXIES], 168, "root")
        made = tls_leaf.made(wanted, *self.issuer, datetime.now(UTC))
        (folder / "leaf.pem").write_bytes(made[0])
        (folder / "authority.pem").write_text(self.root.public())
        (folder / "tls.json").write_text(
            f'{{"names": ["{ZONE}"], "addresses": [], "hours": 168, "group": "root"}}'
        )
        return folder


# Of all servers of a test run.
OURS = Trust()

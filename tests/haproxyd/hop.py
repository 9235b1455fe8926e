"""Certificates of application hosts, made as the hosts make them, and some that are not theirs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from templates.conftest import REPOSITORY

from flotilla.rules import authority as rules

sys.path.insert(0, str(REPOSITORY / "roles/tls/files"))

import tls_leaf

ZONE = "app.flotilla.lab.internal"
OTHER = "redis.flotilla.lab.internal"


@cache
def _root(which: str) -> rules.Authority:
    return rules.root(which, "lab", rules.new_key(), datetime.now(UTC) - timedelta(days=100))


def authority() -> str:
    """What load balancers believe."""
    return _root("flotilla").public()


def leaf(address: str, *, root: str = "flotilla", zone: str = ZONE, age_days: float = 0.0) -> bytes:
    """Key, certificate and issuer, made so many days ago, for a week."""
    made = datetime.now(UTC) - timedelta(days=age_days)
    issuer = rules.issuer(zone, "127.0.0.0/8", _root(root), rules.new_key(), made)
    wanted = tls_leaf.Settings([zone, f"app-1.{zone}"], [address], 168, "")
    return tls_leaf.made(wanted, *issuer, made)[0]


def put(path: Path, content: bytes) -> None:
    """By a rename, as the host does."""
    draft = path.with_suffix(".new")
    draft.write_bytes(content)
    draft.rename(path)

"""The snapshot file ``var/<env>/inventory.json``.

It is one JSON object on three lines: ``header`` (what it was made from), ``ansible`` (what
``ec2.py --list`` prints) and ``hosts``. A reader in a hurry parses the first line and copies the
second: with 10,000 hosts that is what keeps ``ec2.py`` below 0.3 s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from flotilla.files import replace
from flotilla.inventory.groups import document
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot

# Raise it whenever the file changes shape; inventory/ec2.py checks the same number.
SCHEMA = 1


class Stored(NamedTuple):
    """A snapshot, and whether it was made from the fleet.yml of today."""

    snapshot: Snapshot
    is_current: bool


def path(settings: Settings) -> Path:
    """Where the snapshot of this environment is kept."""
    return settings.scratch / "inventory.json"


def save(settings: Settings, snapshot: Snapshot) -> None:
    """Replace the snapshot file at once: a reader sees the old one or the new one, whole.

    Raises FlotillaError when the disk refuses it; the old file is then still there.
    """
    header = {
        "schema": SCHEMA,
        "fetched_at": snapshot.fetched_at,
        "fresh_seconds": settings.inventory.fresh_seconds,
        "digest": settings.digest,
        "root": str(settings.root),
        "hosts": len(snapshot.hosts),
        "problems": snapshot.problems,
    }
    parts = {
        "header": header,
        "ansible": document(settings, snapshot),
        "hosts": [host.as_dict() for host in snapshot.hosts],
    }
    lines = (f'"{key}":{json.dumps(value)}' for key, value in parts.items())
    replace(path(settings), "{" + ",\n".join(lines) + "}\n")


def read(settings: Settings) -> Stored | None:
    """The stored snapshot; None when there is none, or one that this version cannot read."""
    try:
        with path(settings).open("rb") as file:
            header = _value(file.readline())
            if header["schema"] != SCHEMA:
                return None
            if not _whole(file.readline()):
                return None
            hosts = tuple(Host.from_dict(one) for one in _value(file.readline()))
        snapshot = Snapshot(header["fetched_at"], hosts, tuple(header["problems"]))
        made_from = (header["digest"], header["root"])
    except (OSError, ValueError, KeyError, TypeError):
        # A missing, foreign or damaged file means what no file means: ask EC2.
        return None
    return Stored(snapshot, made_from == (settings.digest, str(settings.root)))


def listing(settings: Settings) -> bytes:
    """The stored ``--list`` document, as bytes to print. Raises OSError without a file."""
    with path(settings).open("rb") as file:
        file.readline()
        return _bare(file.readline())


def _value(line: bytes) -> Any:
    return json.loads(_bare(line))


def _whole(line: bytes) -> bool:
    """Whether the ``ansible`` line begins and ends as ``save`` writes it; not parsed, for speed."""
    return line.startswith(b'"ansible":{') and line.endswith(b"},\n")


def _bare(line: bytes) -> bytes:
    """The value on one line of the file: without its key, and the comma or brace that follows."""
    text = line.strip()
    return text[text.index(b":") + 1 : -1]

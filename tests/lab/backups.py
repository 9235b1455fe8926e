"""What tests of backups ask of the fleet."""

from __future__ import annotations

import json
from typing import Any

from typed import typed

# What the recovery point may be behind, under load.
RECOVERY_SECONDS = 5.0


def archive() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(typed_any("backup.list", "--json"))["archive"]
    return found


def typed_any(*words: str) -> str:
    """Exit 1 only says that something is to be told."""
    try:
        return typed(*words).stdout
    except AssertionError:
        return typed(*words, code=1).stdout

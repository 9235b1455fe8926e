"""What tests of backups ask of the fleet."""

from __future__ import annotations

import json
from typing import Any

from typed import typed

# What the recovery point may be behind, under load.
RECOVERY_SECONDS = 5.0


def archive() -> dict[str, Any]:
    # Exit 1 only says that something is to be told, and may be over at the next look.
    told = typed("backup.list", "--json", code=(0, 1)).stdout
    found: dict[str, Any] = json.loads(told)["archive"]
    return found

"""Where things are: the repository, its environments, and each environment's scratch folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DEFAULT = "lab"
VARIABLE = "FLOTILLA_ENV"
FLEET_FILE = Path("group_vars") / "all" / "fleet.yml"


def root() -> Path:
    """The repository this package was loaded from; relative paths in fleet.yml start here."""
    return Path(__file__).resolve().parents[2]


def current(variables: Mapping[str, str] = os.environ) -> str:
    """The environment the operator chose with ``FLOTILLA_ENV``; unset or empty is the default."""
    return variables.get(VARIABLE) or DEFAULT


def names(base: Path) -> list[str]:
    """Every environment that exists: a folder of ``inventory/`` with a fleet.yml, sorted.

    A folder called ``<something>.example`` is there to be copied, not to be used.
    """
    folders = (path.parents[2] for path in base.glob(f"inventory/*/{FLEET_FILE}"))
    return sorted(folder.name for folder in folders if folder.suffix != ".example")


def fleet_file(base: Path, env: str) -> Path:
    """The one file that describes environment ``env``."""
    return base / "inventory" / env / FLEET_FILE


def scratch(base: Path, env: str) -> Path:
    """``var/<env>``: snapshots, SSH files and journals; never in Git, safe to delete when idle."""
    return base / "var" / env

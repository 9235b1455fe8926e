"""The Packer templates as Packer sees them: in its format, and valid. Needs no AWS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flotilla.errors import FlotillaError
from flotilla.images.packer import PLUGINS_APART, Packer
from flotilla.rules.images import NAMES

PLUGINS = "packer/plugins.pkr.hcl"
# Any values will do: nothing is looked up while validating.
_VARIABLES = ("source_ami=ami-12345678", "ami_name=flotilla-validate", "region=eu-central-1")
_SECONDS = 300


def validate(root: Path) -> list[str]:
    """What Packer complains about, as sentences; empty when all templates are fine.

    Raises Refused without a usable Packer, FlotillaError when its plugins cannot be installed.
    """
    # Packer looks for ansible-playbook on PATH even to validate.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    packer = Packer(root, os.environ | {"PATH": path}, seconds=_SECONDS)
    initialise(packer)
    complaints = []
    for folder in ["packer", *(f"packer/{name}" for name in ("common", *NAMES))]:
        code, out, _ = packer.execute_cmd("fmt", folder, check=True)
        if code:
            names = ", ".join(Path(line).name for line in out.decode().splitlines())
            complaints.append(f"{folder}: not in packer's format: {names or out.decode()}")
    for name in NAMES:
        code, out, _ = packer.validate(f"packer/{name}", var=list(_VARIABLES))
        if code:
            complaints.append(f"packer/{name}: {' '.join(out.decode(errors='replace').split())}")
    return complaints


def initialise(packer: Packer) -> None:
    """Install the plugins that Packer 1.7 and newer do not bring along."""
    if packer.release() < PLUGINS_APART:
        return
    code, out, _ = packer.execute_cmd("init", PLUGINS)
    if code:
        raise FlotillaError(
            f"packer init {PLUGINS} exited {code}: {' '.join(out.decode(errors='replace').split())}"
        )

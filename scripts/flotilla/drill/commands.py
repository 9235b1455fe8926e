"""Commands as an operator types them, each in a process of its own that talks on our stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flotilla import environment
from flotilla.errors import FlotillaError
from flotilla.settings import Settings


def typed(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    """Begin a task."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("fab")), *arguments],
        cwd=settings.root,
        env=os.environ | {environment.VARIABLE: settings.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def told(settings: Settings, *arguments: str) -> dict[str, Any]:
    """What a task with --json printed. Raises FlotillaError with its words when it failed."""
    with typed(settings, *arguments, "--json") as process:
        output, _ = process.communicate()
    try:
        found: dict[str, Any] = json.loads(output)
    except ValueError:
        found = {"error": {"what": f"exit code {process.returncode}, no report"}}
    if process.returncode == 0:
        return found
    error = found.get("error", {})
    raise FlotillaError(
        f"fab {' '.join(arguments)}: {error.get('what', f'exit code {process.returncode}')}",
        why=str(error.get("why", "")),
        next=str(error.get("next", "")),
    )

"""Remove everything a lab left on the machine, however it ended.

Nothing here needs the process that made it: what belongs to a lab is known by its name, its group
of processes or the state file. Must run in a private mount namespace (`lab.namespace`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lab import namespace, network
from lab.layout import Layout
from lab.podman import CGROUP_PARENT, Podman
from lab.preflight import left


def remove(where: Layout) -> list[str]:
    """End every host, delete what was made, put kernel settings back; returns what was found."""
    state: dict[str, Any] = dict(left(where))
    namespace.end_group(CGROUP_PARENT)
    found = [f"host {name}" for name in _containers(where, state)]
    found += network.leftovers()
    network.down(state.get("sysctls", {}))
    shutil.rmtree(where.instances, ignore_errors=True)
    # The lock file stays: deleting a locked file lets two processes hold "the" lock.
    where.state.unlink(missing_ok=True)
    return found


def _containers(where: Layout, state: dict[str, Any]) -> list[str]:
    """Delete all containers of the storage the last lab used, and of ours."""
    names = []
    for storage in sorted({str(where.storage), str(state.get("storage", where.storage))}):
        if Path(storage).exists():
            podman = Podman(Path(storage), where.runroot)
            there = podman.containers()
            podman.remove(*there)
            names += there
    return names

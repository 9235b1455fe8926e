"""The private mount namespace that the lab process, podman and every host live in.

systemd 257 will not boot on cgroup v1, and a machine in hybrid mode has version 2 only below a
directory of its own. In a mount namespace nobody else sees, version 2 can be at the usual place.
The namespace also takes every mount of a crashed lab with it.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from lab.run import run, tried

CGROUP = Path("/sys/fs/cgroup")
# How long the kernel may take to end what it was told to kill.
_END_SECONDS = 10.0
NETNS = Path("/run/netns")
# The lab process is started through this, so that nothing below is ever done to the machine itself.
UNSHARE = ("unshare", "--mount", "--propagation", "private", "--")


def enter() -> bool:
    """Have cgroup v2 at its usual place; True when it was not there and has been mounted."""
    # Names of network namespaces are files in /run, which everybody sees; these nobody shall.
    NETNS.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", "none", str(NETNS)])
    if (CGROUP / "cgroup.controllers").exists():
        return False
    tried(["umount", "--recursive", str(CGROUP)])
    run(["mount", "-t", "cgroup2", "none", str(CGROUP)])
    return True


def end_group(name: str) -> None:
    """End every process in a group of processes, at once, and remove the group; no error where
    there is none.
    """
    top = CGROUP / name.lstrip("/")
    if not top.exists():
        return
    (top / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _END_SECONDS
    while "populated 1" in (top / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    # Containers of a lab that is being killed remove theirs at the same time: what `walk` no longer
    # finds it passes over.
    for directory, *_ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()

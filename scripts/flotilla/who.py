"""Who is at work: for locks, journals and audit lines."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path


def holder() -> str:
    """User, machine and process, so that two runs of one person differ."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"


def has_ended(name: str) -> bool:
    """Whether a ``holder`` was a process of this user on a machine of this name, and is gone.

    Two machines may have one name: this is for a fleet that only one machine can reach.
    """
    who, _, process = name.rpartition(":")
    is_ours = who == holder().rpartition(":")[0] and process.isdecimal()
    return is_ours and not Path("/proc", process).exists()

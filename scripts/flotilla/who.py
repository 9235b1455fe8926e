"""Who is at work: for locks, journals and audit lines."""

from __future__ import annotations

import getpass
import os
import socket


def holder() -> str:
    """User, machine and process, so that two runs of one person differ."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"

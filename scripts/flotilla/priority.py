"""Who gets a processor first.

Linux weighs the processes of a session against each other by their nice values, and sessions
against each other by a nice value that each has in /proc/PID/autogroup (sched(7), "The autogroup
feature"; on where Debian's kernel is not told otherwise). Either one alone changes nothing that
counts: ``nice`` on a command that runs in a session of its own, as every command over SSH does,
has no effect on anybody.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_FIRST = -10
_AUTOGROUP = "/proc/self/autogroup"


def go_first() -> None:
    """For clients: what they wait for a processor would count as the servers' time.

    151 of 225 ms were the sender's; they take a tenth of a core. Who may not raise a priority goes
    without, and a session that others share keeps its own.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
        if os.getsid(0) == os.getpid():
            Path(_AUTOGROUP).write_text(str(_FIRST))

"""Who gets a processor first.

Linux weighs the processes of a session against each other by their nice values, and sessions
against each other by a nice value that each has in /proc/PID/autogroup (sched(7), "The autogroup
feature"; on where Debian's kernel is not told otherwise). Either one alone changes nothing that
counts: ``nice`` on a command that runs in a session of its own, as every command over SSH does,
has no effect on anybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

_FIRST, _LAST = -10, 19
_TOLD_OF_END = 1  # PR_SET_PDEATHSIG, linux/prctl.h
_AUTOGROUP = "/proc/self/autogroup"
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def go_first() -> None:
    """For clients: what they wait for a processor would count as the servers' time.

    151 of 225 ms were the sender's; they take a tenth of a core. Who may not raise a priority goes
    without, and a session that others share keeps its own.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
        if os.getsid(0) == os.getpid():
            Path(_AUTOGROUP).write_text(str(_FIRST))


def go_behind() -> None:
    """Go on in a session of its own, behind every other; the process that we were waits for it.

    For drills and benchmarks of a fleet on the operator's own machine: on AWS the operator's
    commands take no processor time from hosts. They took 1.7 s of the 20 that two processors have
    in a deploy of 6 hosts, and clients' p99 was 36 ms with them at par, 17 ms with them behind.

    To be called before threads are begun, and after the last question: the terminal is not ours
    any more. Signals are passed on, the exit code is passed back, and when the one who waits is
    killed, SIGTERM tells us so. Without autogroups the weight stays as it is.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    waiting = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the exit code
    # One that comes before they can be passed on waits until then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    if child := os.fork():
        os._exit(_ended(child, before))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(_TOLD_OF_END, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != waiting:
        os._exit(128 + signal.SIGTERM)
    with contextlib.suppress(OSError):
        Path(_AUTOGROUP).write_text(str(_LAST))


def _ended(child: int, mask: Iterable[int]) -> int:
    """The exit code of a process that gets our signals; 128 and the number if one ended it."""
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code

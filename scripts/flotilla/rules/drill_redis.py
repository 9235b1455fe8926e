"""The faults of a Redis drill, and what they may cost.

Redis replicates after it has answered: a primary that falls silent may have acknowledged writes
that nobody else has. Clients that want more than that ask with WAIT; for them nothing may be lost.
"""

from __future__ import annotations

from dataclasses import replace

from flotilla.rules.drill_fault import Bar, Ends, Fault, Power

_GONE = Bar(3.0, 8.0)
FAULTS = {
    fault.name: fault
    for fault in (
        # What was acknowledged is with the kernel, which sends it on when the process is gone.
        Fault("kill", "SIGKILL to the primary's redis-server", Power.SHELL, Ends.MOVED, _GONE),
        Fault(
            "freeze",
            "SIGSTOP to the primary's redis-server, SIGCONT after the failover",
            Power.SHELL,
            Ends.MOVED,
            _GONE,
            15.0,
            may_lose=True,
        ),
        Fault(
            "partition",
            "the primary's host reaches nobody and nobody reaches it",
            Power.OUTSIDE,
            Ends.MOVED,
            _GONE,
            15.0,
            may_lose=True,
        ),
        Fault(
            "stop-instance",
            "EC2 stops the primary's instance, by force",
            Power.API,
            Ends.MOVED,
            _GONE,
            may_lose=True,
        ),
        Fault(
            "zone",
            "the primary's zone reaches nothing outside of it",
            Power.OUTSIDE,
            Ends.MOVED,
            _GONE,
            15.0,
            may_lose=True,
        ),
        Fault(
            "switchover",
            "nothing breaks: the role is given to another member, as an operator does it",
            Power.OPERATOR,
            Ends.MOVED,
            Bar(1.0, 1.0),
        ),
        Fault("restart", "the primary's redis-server is restarted", Power.SHELL, Ends.EITHER),
    )
}


def promised(fault: Fault, *, waits: bool) -> Fault:
    """The fault with what holds for clients that ask for an acknowledgement of a replica."""
    return replace(fault, may_lose=fault.may_lose and not waits)

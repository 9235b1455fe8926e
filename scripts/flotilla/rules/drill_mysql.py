"""The faults of a MySQL drill, and what they may cost."""

from __future__ import annotations

from flotilla.rules.drill_fault import Bar, Ends, Fault, Power

_SOON, _SILENT = Bar(1.5, 3.0), Bar(4.0, 7.0)
FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill", "SIGKILL to the primary's mysqld", Power.SHELL, Ends.MOVED, _SOON),
        Fault(
            "freeze",
            "SIGSTOP to the primary's mysqld, SIGCONT after the failover",
            Power.SHELL,
            Ends.MOVED,
            _SILENT,
            15.0,
        ),
        Fault(
            "partition",
            "the primary's host reaches nobody and nobody reaches it",
            Power.OUTSIDE,
            Ends.MOVED,
            _SILENT,
            15.0,
        ),
        Fault(
            "partition-replicas-only",
            "the primary loses its replicas, while clients and the API reach it",
            Power.OUTSIDE,
            Ends.MOVED,
            _SILENT,
            15.0,
        ),
        Fault(
            "stop-instance",
            "EC2 stops the primary's instance, by force",
            Power.API,
            Ends.MOVED,
            _SILENT,
        ),
        Fault(
            "zone",
            "the primary's zone reaches nothing outside of it",
            Power.OUTSIDE,
            Ends.MOVED,
            _SILENT,
            20.0,
        ),
        Fault(
            "switchover",
            "nothing breaks: the role is given to another member, as an operator does it",
            Power.OPERATOR,
            Ends.MOVED,
            Bar(0.5, 1.0, is_clean=True),
        ),
        Fault("restart", "the primary's mysqld is restarted", Power.SHELL, Ends.EITHER),
        Fault(
            "disk-full",
            "no room is left where the primary keeps its data",
            Power.SHELL,
            Ends.EITHER,
            hold_seconds=45.0,
        ),
        Fault(
            "too-many-connections",
            "clients hold every connection the primary has",
            Power.SHELL,
            Ends.STAYED,
            hold_seconds=20.0,
        ),
    )
}

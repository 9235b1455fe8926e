"""Which server settings a member must have before it may take part, and why each one matters.

Every reason is a measured way to lose an acknowledged write or to hang; none of them is visible
while all is well, so they are checked on every look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Variable -> (the value it must have, what happens otherwise).
REQUIRED: Mapping[str, tuple[str, str]] = {
    "gtid_mode": ("ON", "positions could not be compared"),
    "enforce_gtid_consistency": ("ON", "a statement could run without a GTID"),
    "log_bin": ("ON", "nobody could follow it"),
    "log_replica_updates": ("ON", "what it received could not be passed on after a promotion"),
    "binlog_format": ("ROW", "replicas could compute other rows"),
    "sync_binlog": ("1", "an acknowledged write could vanish in a crash"),
    "innodb_flush_log_at_trx_commit": ("1", "an acknowledged write could vanish in a crash"),
    "replica_preserve_commit_order": ("ON", "its position would have holes"),
    "relay_log_recovery": ("OFF", "a restart would throw away writes it has acknowledged"),
    "sync_relay_log": ("1", "a crash could lose writes it has acknowledged"),
    "skip_replica_start": ("ON", "it would follow somebody before the record is read"),
    "rpl_semi_sync_source_wait_point": ("AFTER_SYNC", "readers could see what is then lost"),
    "rpl_semi_sync_source_wait_no_replica": ("ON", "it would fall back to asynchronous commits"),
}
# A shorter timeout is a silent fall-back to asynchronous commits; the checklist's value is 1e9 ms.
SHORTEST_SEMI_SYNC_TIMEOUT_MS = 100_000_000
# STOP REPLICA may otherwise hang for a year, and a frozen source is not noticed in 25 s.
LONGEST_SECONDS: Mapping[str, int] = {"rpl_stop_replica_timeout": 60, "replica_net_timeout": 10}

NAMES = (*REQUIRED, *LONGEST_SECONDS, "rpl_semi_sync_source_timeout")


def faults(variables: Mapping[str, str], persisted: Mapping[str, str]) -> Iterator[str]:
    """Name every setting that is not as it must be; values as the server prints them.

    ``persisted`` holds what mysqld-auto.cnf says about the role: it beats my.cnf after a restart,
    so any such line could bring a former primary back writable.
    """
    for name, (wanted, harm) in REQUIRED.items():
        value = variables.get(name, "not set")
        if value.upper() != wanted:
            yield f"{name} is {value}, must be {wanted}: {harm}"
    for name, limit in LONGEST_SECONDS.items():
        if int(variables.get(name, limit + 1)) > limit:
            yield f"{name} is {variables.get(name, 'not set')} s, at most {limit}: it would hang"
    timeout = int(variables.get("rpl_semi_sync_source_timeout", 0))
    if timeout < SHORTEST_SEMI_SYNC_TIMEOUT_MS:
        yield f"rpl_semi_sync_source_timeout is {timeout} ms: it would fall back to asynchronous"
    for name, value in persisted.items():
        yield f"{name}={value} is persisted: it would return with that role after a restart"

"""One Redis host at the edge: what its own reporter says, as the rules want it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flotilla.errors import HostFailed
from flotilla.hosts.ssh import Runner
from flotilla.rules.redis import Lasts, Member
from flotilla.snapshot import Host

# Installed by role redis. It asks with the monitoring account; the password stays on the host.
REPORTER = "/usr/local/lib/flotilla/redis_node.py status"
SECONDS = 10.0


def read(runner: Runner, host: Host) -> Member:
    """The host's state. Raises HostFailed for a report of no use, Unreachable without an answer."""
    result = runner.run(host, REPORTER, sudo=True, seconds=SECONDS)
    try:
        report = json.loads(result.stdout)
        return member(host, report)
    except (ValueError, KeyError, TypeError) as error:
        raise HostFailed(
            f"{host.name}: its Redis report cannot be read ({type(error).__name__}: {error})",
            next=f"fab fleet.configure --limit {host.name}",
        ) from error


def member(host: Host, report: Mapping[str, Any]) -> Member:
    """A report as a member. Raises KeyError for a report without a field."""
    role = {"master": "primary", "slave": "replica", None: None}[report.get("role")]
    is_replica = role == "replica"
    return Member(
        name=host.name,
        instance_id=host.instance_id,
        address=report["address"],
        role=role,
        error=report["error"],
        primary_address=report["master_host"] if is_replica else None,
        is_linked=report["master_link_status"] == "up" if is_replica else None,
        replicas=report.get("connected_slaves"),
        good_replicas=report.get("min_slaves_good_slaves"),
        offset=report.get("slave_repl_offset" if is_replica else "master_repl_offset"),
        used_bytes=report.get("used_memory"),
        max_bytes=report.get("maxmemory"),
        is_persisting=_is_persisting(report),
        version=report.get("redis_version"),
        uptime_seconds=report.get("uptime_in_seconds"),
        clients=report.get("connected_clients"),
        names=report["sentinels"],
        quorum_error=report["quorum_error"],
        is_syncing=bool(report.get("master_sync_in_progress")),
        unseen=_unseen(report.get("unseen")),
        keys=report.get("keys"),
        held=report.get("held"),
        is_barred=is_replica and report.get("slave_priority") == 0,
        certificate=Lasts(**report["certificate"]) if report.get("certificate") else None,
    )


def _unseen(told: list[str] | None) -> tuple[str, ...] | None:
    return None if told is None else tuple(told)


def _is_persisting(report: Mapping[str, Any]) -> bool | None:
    if report.get("aof_enabled") is None:
        return None
    return bool(report["aof_enabled"]) and report.get("aof_last_write_status") == "ok"

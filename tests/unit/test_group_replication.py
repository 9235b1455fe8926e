"""The other side of a benchmark: who is primary of a group, and what it shares with us."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mysqld.server import settings_file as our_file

from benchmarks.group_health import objection
from benchmarks.group_replication import settings_file

HOSTS: list[Any] = [
    SimpleNamespace(name=f"mysql-{n}", private_ip=f"10.77.4.{n}") for n in (1, 2, 3)
]


def made(**extra: object) -> dict[str, str]:
    text = settings_file(
        our_file(7, "10.77.4.1", Path("server.pem")), HOSTS[0], HOSTS, "a-name", extra
    )
    lines = [line.partition("=") for line in text.splitlines() if "=" in line]
    return {name.strip(): value.strip() for name, _, value in lines}


def test_both_sides_have_the_same_durability_and_memory() -> None:
    ours = dict(
        (part.strip() for part in line.split("=", 1))
        for line in our_file(7, "10.77.4.1", Path("server.pem")).splitlines()
        if "=" in line and not line.startswith("#")
    )
    theirs = made()
    for name in ("sync_binlog", "innodb_flush_log_at_trx_commit", "innodb_buffer_pool_size"):
        assert theirs[name] == ours[name]


def test_nothing_of_our_roles_is_in_a_group_s_settings() -> None:
    assert not [name for name in made() if "semi_sync" in name or "read_only" in name]
    assert "skip_replica_start" not in made()


def test_a_group_s_own_settings_can_be_changed() -> None:
    assert made(member_expel_timeout=0)["group_replication_member_expel_timeout"] == "0"
    seeds = made()["group_replication_group_seeds"]
    assert seeds == "10.77.4.1:3306,10.77.4.2:3306,10.77.4.3:3306"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (("PRIMARY", "ONLINE", 0, 3, 3), ""),
        (("PRIMARY", "ONLINE", 0, 3, 2), ""),
        (("PRIMARY", "ONLINE", 0, 3, 1), "1 of 3 members reached"),
        (("PRIMARY", "ONLINE", 1, 3, 3), "read-only"),
        (("SECONDARY", "ONLINE", 1, 3, 3), "ONLINE SECONDARY"),
        (("PRIMARY", "ERROR", 1, 1, 1), "ERROR PRIMARY"),
        (None, "in no group"),
    ],
)
def test_a_member_is_primary_while_a_majority_says_so(row: Any, why: str) -> None:
    assert objection("/primary", row) == why

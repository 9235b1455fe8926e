"""Whoever fails over is killed, at every line of the journal: the next one ends it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from databases import TABLE, Databases
from guests import REPO, needs_lab, until
from typed import FAB, KILL, fab, interfered

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.thorough, pytest.mark.timeout(480)]

ACTS = ("revoke", "fence", "positions", "drain", "record", "detach", "repoint", "grant", "verify")
MOMENTS = [
    "before write begin",
    *(f"{side} {act}" for act in ACTS for side in ("after write intent", "after write done")),
    "before write end",
]
# The lease of somebody who was killed runs out.
LEASE_SECONDS = 120
HUNTER = """\
until grep -q '"act": "{act}"' {journal} 2>/dev/null; do sleep 0.01; done
systemctl kill --kill-whom=all --signal=KILL flotilla-mysql-agent
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_operator_who_is_killed_is_followed_by_one_who_ends_it(
    databases: Databases, moment: str
) -> None:
    old, term = databases.primary, databases.state.record.term
    fab("mysql.pause", "--reason", "a test works here", "--minutes", "10", "--yes")
    databases.write(old, "kept")
    databases.dies(old)
    with interfered(moment + r"\b.*", KILL, "mysql.failover", "--yes") as run:
        code, _, said = run.ends()
    if "interfered: " not in said:
        pytest.skip(f"this failover has no such moment (exit {code})")
    assert code < 0
    done = until(_again, LEASE_SECONDS, "the next one ends it")
    assert done["term"] == term + 1
    assert databases.state.record.term == term + 1
    fab("mysql.unpause", "--yes")
    new = databases.moved(old)
    assert new == done["primary"]
    assert databases.rows(new) == {"kept"}
    databases.write(new, "after")
    terms = databases.sql(new, "SELECT term, COUNT(*) AS n FROM ops.term GROUP BY term")
    assert {row["n"] for row in terms} == {1}
    assert databases.value(new, f"(SELECT COUNT(*) FROM {TABLE})") == 2


def _again() -> dict[str, Any] | None:
    """The same command; None while the lease of the one who was killed still holds it up."""
    done = subprocess.run(
        [FAB, "mysql.failover", "--yes", "--json"],
        cwd=REPO,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=280,
        check=False,
    )
    assert done.returncode in {0, 3}, done.stdout + done.stderr
    return json.loads(done.stdout) if done.returncode == 0 else None


@pytest.mark.parametrize("act", ["revoke", "record", "repoint"])
def test_a_watcher_that_is_killed_is_followed_by_another_one(
    databases: Databases, act: str
) -> None:
    """The journal of whoever is at work is followed on its host; the unit comes back by itself."""
    old, term = databases.primary, databases.state.record.term
    databases.write(old, "kept")
    journal = f"/var/lib/flotilla-mysql/failovers/term-{term + 1:06d}.jsonl"
    hunter = HUNTER.format(act=act, journal=journal)
    for name in databases.replicas:
        databases.opened.runner.put(name, hunter.encode(), "/run/hunter.sh")
        databases.root(name, f"systemd-run --unit=hunter-{term} timeout 60 sh /run/hunter.sh")
    databases.dies(old)
    new = databases.moved(old, 120)
    for name in databases.replicas:
        databases.root(name, f"systemctl stop hunter-{term}", check=False)
    assert databases.state.record.term in {term + 1, term + 2}
    assert "kept" in databases.rows(new)

"""What a failover's report says, and that it survives being written and read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.mysql_report import Loss, Report, Surplus, count, line, loss, text

A, B = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4e11fa47-71ca-11e1-9e33-c80aa9429562"
REPORT = Report(
    kind="failover",
    term=4,
    at="2026-01-02T03:04:05+00:00",
    by="mysql-2",
    old="mysql-1",
    new="mysql-3",
    verdict="dead",
    evidence=("mysql-2 and mysql-3 get nothing from it",),
    proofs=("mysql-2 and mysql-3 acknowledge nothing any more",),
    seconds={"revoke mysql-2": 0.1, "grant mysql-3": 0.25, "verify fence mysql-1": 20.0},
    loss=Loss(0, "it has all"),
    write_gap_seconds=1.234,
    fate="mysql-1 is stopped",
    surplus=Surplus("mysql-1", f"{A}:7-9", "s3://b/k", {"shop.orders": {"insert": 3}}),
)


@pytest.mark.parametrize(
    ("gtids", "number"),
    [
        ("", 0),
        (f"{A}:1", 1),
        (f"{A}:1-3:7", 4),
        (f"{A}:1-3,{B}:5-6", 5),
        (f"{A}:1-2:nightly:4-5:9", 5),
        (f"{A}:1-3,\n{B}:7", 4),
    ],
)
def test_transactions_are_counted(gtids: str, number: int) -> None:
    assert count(gtids) == number


@given(st.lists(st.tuples(st.integers(1, 10**12), st.integers(0, 10**6)), min_size=1, max_size=9))
def test_each_interval_counts_both_its_ends(intervals: list[tuple[int, int]]) -> None:
    written = ":".join(f"{first}-{first + more}" for first, more in intervals)
    assert count(f"{A}:{written}") == sum(more + 1 for _, more in intervals)


@given(ackers=st.integers(1, 8), wait_for=st.integers(1, 8), asked=st.integers(0, 8))
def test_nothing_is_called_safe_unless_every_acknowledgement_was_seen(
    ackers: int, wait_for: int, asked: int
) -> None:
    """The hosts that were not asked are too few to have let a commit through on their own."""
    wait_for, asked = min(wait_for, ackers), min(asked, ackers)
    names = [f"mysql-{n}" for n in range(asked)]
    found = loss(ackers=ackers, wait_for=wait_for, revoked=names, missing="")
    unseen_commit_possible = ackers - asked >= wait_for
    assert found.count == (None if unseen_commit_possible else 0)


def test_what_a_replica_held_and_the_new_primary_does_not_is_lost() -> None:
    found = loss(ackers=2, wait_for=1, revoked=["mysql-2", "mysql-3"], missing=f"{A}:5-6")
    assert (found.count, found.gtids) == (2, f"{A}:5-6")


def test_a_report_is_read_back_as_it_was_written() -> None:
    assert Report.from_dict(json.loads(json.dumps(REPORT.as_dict()))) == REPORT
    bare = replace(REPORT, surplus=None, write_gap_seconds=None)
    assert Report.from_dict(json.loads(json.dumps(bare.as_dict()))) == bare


def test_the_page_names_evidence_times_loss_and_where_the_surplus_is() -> None:
    page = text(REPORT)
    for wanted in (
        "mysql-2 and mysql-3 get nothing from it",
        "0.35 s until writes went on",
        "no writes for 1.23 s",
        "acknowledged writes lost: 0 (it has all)",
        "only mysql-1 has 3 transactions",
        "s3://b/k",
        "shop.orders: 3 insert",
        "mysql-1 is stopped",
    ):
        assert wanted in page


def test_what_is_not_known_is_not_called_zero() -> None:
    unknown = replace(REPORT, loss=Loss(None, "mysql-2 was away"))
    assert "lost: not known yet" in text(unknown)
    assert "lost ?" in line(unknown)


def test_an_old_primary_that_came_back_completes_the_report() -> None:
    found = replace(REPORT, surplus=None).returned(REPORT.surplus, "mysql-1 follows mysql-3")
    assert found == replace(REPORT, fate="mysql-1 follows mysql-3")
    assert found.returned(None, "x").surplus == REPORT.surplus


def test_what_the_old_primary_comes_back_with_bounds_a_loss_that_was_not_known() -> None:
    unknown = replace(REPORT, surplus=None, loss=Loss(None, "mysql-2 was away"))
    assert unknown.returned(None, "it follows").loss.count == 0
    bounded = unknown.returned(REPORT.surplus, "it is kept out").loss
    assert (bounded.count, bounded.gtids) == (None, f"{A}:7-9")
    assert "at most the 3" in bounded.proof
    assert REPORT.returned(None, "it follows").loss == REPORT.loss

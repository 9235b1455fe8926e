"""Who may be copied over, from whom, and what is in the transactions that are saved first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mysql_model import Model, with_member

from flotilla.rules.mysql import Refusal, repair, switchover
from flotilla.rules.mysql_rebuild import Rebuild, rebuild
from flotilla.rules.mysql_surplus import contents
from flotilla.rules.mysql_topology import Record, SemiSync, Topology

UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
PRINTED = f"""\
# at 157
SET @@SESSION.GTID_NEXT= '{UUID}:7'/*!*/;
BINLOG '
Xw8=
'/*!*/;
### INSERT INTO `shop`.`orders`
### SET
###   @1=1 /* INT meta=0 nullable=0 is_null=0 */
###   @2='### INSERT INTO `x`.`y`' /* VARSTRING(40) meta=40 nullable=1 is_null=0 */
### INSERT INTO `shop`.`orders`
### SET
###   @1=2
SET @@SESSION.GTID_NEXT= '{UUID}:nightly:1'/*!*/;
### UPDATE `shop`.`odd``name`
### WHERE
###   @1=1
### SET
###   @1=3
### DELETE FROM `shop`.`orders`
### WHERE
###   @1=2
SET @@SESSION.GTID_NEXT= 'AUTOMATIC' /* added by mysqlbinlog */ /*!*/;
"""


@pytest.fixture
def whole() -> tuple[Topology, Record]:
    """A cluster of three that was made whole; mysql-1 is its primary."""
    model = Model()
    for _ in range(2):
        plan = repair(model.look(), model.record)
        assert not isinstance(plan, Refusal)
        for step in plan.steps:
            model.apply(step, plan.primary.name, plan.term)
    assert model.record
    return model.look(), model.record


def decided(topology: Topology, record: Record, name: str) -> Rebuild:
    decision = rebuild(topology, record, name)
    assert isinstance(decision, Rebuild), decision
    return decision


def refusal(topology: Topology, record: Record | None, name: str) -> str:
    decision = rebuild(topology, record, name)
    assert isinstance(decision, Refusal), decision
    return f"{decision.what} {decision.why}"


def test_a_primary_that_nobody_is_left_to_acknowledge_to_is_copied_as_it_is(whole) -> None:
    topology, record = whole
    asleep = with_member(
        topology, "mysql-1", read_only=True, super_read_only=True, semi_sync=SemiSync()
    )
    assert "nobody to follow" in refusal(asleep, record, "mysql-2"), "mysql-3 would wake it"
    for name in ("mysql-2", "mysql-3"):
        asleep = with_member(asleep, name, semi_sync=SemiSync())
    found = decided(asleep, record, "mysql-2")
    assert (found.donor.name, found.asleep) == ("mysql-1", True)
    assert "is the primary" in refusal(asleep, record, "mysql-1")
    # Promoted when nobody could acknowledge, it never took its term's row.
    promoted = replace(record, term=record.term + 1)
    assert decided(asleep, promoted, "mysql-2").asleep
    # It lacks writes of its own, which somebody has: its disk is one of before.
    lost = {("mysql-3", "mysql-1"): f"{record.uuid}:100-120"}
    assert refusal(replace(asleep, surplus=lost), record, "mysql-2")
    older = {("mysql-3", "mysql-1"): "u-before:100-120"}
    assert decided(replace(asleep, surplus=older), record, "mysql-2").asleep
    # One that is not known to be whole, or is no primary of this term, is nobody's source.
    for spoilt in ({"term": 7}, {"closed": True}, {"uuid": "another"}, {"super_read_only": False}):
        wrong = with_member(asleep, "mysql-1", **spoilt)
        assert refusal(wrong, record, "mysql-2")
    assert not decided(*whole, "mysql-2").asleep
    out = {"i-mysql-2": "it diverged", "i-mysql-3": "it diverged"}
    stuck = repair(asleep, record, out)
    assert isinstance(stuck, Refusal)
    assert stuck.next == "fab mysql.rebuild mysql-2"


def test_a_replica_is_copied_from_the_other_replica_to_spare_the_primary(whole) -> None:
    assert decided(*whole, "mysql-2").donor.name == "mysql-3"


def test_without_another_good_replica_the_primary_gives_the_copy(whole) -> None:
    topology, record = whole
    silent = with_member(topology, "mysql-3", semi_sync=SemiSync())
    assert decided(silent, record, "mysql-2").donor.name == "mysql-1"


def test_nothing_is_copied_from_a_member_with_transactions_of_its_own(whole) -> None:
    topology, record = whole
    diverged = replace(topology, surplus={("mysql-3", "mysql-1"): f"{UUID}:9"})
    assert decided(diverged, record, "mysql-2").donor.name == "mysql-1"


def test_nothing_is_copied_across_series(whole) -> None:
    topology, record = whole
    older = with_member(topology, "mysql-3", version=(8, 4, 6))
    assert decided(older, record, "mysql-2").donor.name == "mysql-1"


def test_what_only_the_rebuilt_one_holds_is_named(whole) -> None:
    topology, record = whole
    diverged = replace(topology, surplus={("mysql-2", "mysql-1"): f"{UUID}:9"})
    assert decided(diverged, record, "mysql-2").surplus == f"{UUID}:9"


def test_the_primary_is_never_copied_over(whole) -> None:
    assert "mysql-1 is the primary" in refusal(*whole, "mysql-1")


def test_without_the_primary_nobody_is_copied_over(whole) -> None:
    topology, record = whole
    gone = replace(topology, members=topology.members[1:], silent={"mysql-1": "it is off"})
    assert "does not answer" in refusal(gone, record, "mysql-2")


@pytest.mark.parametrize(
    ("name", "words"), [("mysql-2", "does not answer"), ("mysql-9", "there is no member")]
)
def test_who_is_not_there_is_not_rebuilt(whole, name: str, words: str) -> None:
    topology, record = whole
    members = tuple(m for m in topology.members if m.name != "mysql-2")
    gone = replace(topology, members=members, silent={"mysql-2": "it is off"})
    assert words in refusal(gone, record, name)


def test_without_a_record_nobody_is_rebuilt(whole) -> None:
    assert "no record" in refusal(whole[0], None, "mysql-2")


def test_a_primary_that_takes_no_writes_is_no_measure(whole) -> None:
    topology, record = whole
    closed = with_member(topology, "mysql-1", read_only=True)
    assert "read-only" in refusal(closed, record, "mysql-2")


def test_rows_and_transactions_are_counted_from_what_mysqlbinlog_prints() -> None:
    found = contents(PRINTED.splitlines(keepends=True))
    assert found.gtids == (f"{UUID}:7", f"{UUID}:nightly:1")
    assert found.rows == {
        "shop.orders": {"insert": 2, "delete": 1},
        "shop.odd``name": {"update": 1},
    }


def test_a_member_whose_data_is_being_replaced_takes_no_part(whole) -> None:
    topology, record = whole
    closed = with_member(topology, "mysql-3", closed=True, offline=True, replication=None)
    closed = replace(closed, surplus={("mysql-3", "mysql-1"): f"{UUID}:9"})
    made = repair(closed, record)
    assert not isinstance(made, Refusal)
    assert not made.steps
    assert "mysql-3 is closed" in made.notes[0]
    moved = switchover(closed, record, None, lag_limit_seconds=2)
    assert not isinstance(moved, Refusal)
    assert (moved.new.name, moved.followers) == ("mysql-2", ())


def test_a_member_that_the_record_keeps_out_is_left_to_its_own_command(whole) -> None:
    topology, record = whole
    apart = with_member(topology, "mysql-3", replication=None, semi_sync=SemiSync())
    made = repair(apart, record, {"i-mysql-3": "it has writes of its own"})
    assert not isinstance(made, Refusal)
    assert not made.steps
    assert "it has writes of its own): fab mysql.rejoin mysql-3" in made.notes[0]
    assert repair(apart, record) != made, "a member that is not kept out is told to follow"


def test_a_member_that_is_kept_out_and_could_be_written_to_stops_everything(whole) -> None:
    topology, record = whole
    open_ = with_member(topology, "mysql-3", read_only=False, super_read_only=False)
    made = repair(open_, record, {"i-mysql-3": "it has writes of its own"})
    assert isinstance(made, Refusal)
    assert "mysql-3 is writable" in made.what

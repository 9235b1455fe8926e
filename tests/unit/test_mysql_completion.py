"""What is left once the record names the new primary: only forward, and again without harm."""

from __future__ import annotations

from dataclasses import replace

from unit.test_mysql_failover_rules import STATE, THREE, TWO, ahead, refused, replica

from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_completion import Completion, completion
from flotilla.rules.mysql_failover import Act
from flotilla.rules.mysql_topology import Member, Record, Replication, SemiSync, Topology

PROMOTED = replace(STATE, record=Record(5, "i-mysql-2", "u2"), barred={"i-mysql-1": "old"})
SERVING = replica(
    "mysql-2", read_only=False, super_read_only=False, replication=None, term=5, term_uuid="u2",
    semi_sync=SemiSync(source=True),
)  # fmt: skip
TURNED = replica(
    "mysql-3", replication=Replication("h-mysql-2", "ON", "ON"), semi_sync=SemiSync(replica=True)
)


def left(*members: Member) -> Completion:
    decision = completion(PROMOTED, Topology(members))
    assert isinstance(decision, Completion), decision
    return decision


def test_a_run_that_died_after_the_record_is_completed_under_the_same_term():
    todo = left(TWO, THREE)
    assert (todo.term, [step.act for step in todo.steps]) == (
        5,
        [Act.DRAIN, Act.DETACH, Act.REPOINT, Act.GRANT],
    )


def test_a_completed_run_has_nothing_left_to_do():
    assert left(SERVING, TURNED).steps == ()


def test_the_old_primary_is_left_to_its_own_watcher():
    todo = left(SERVING, TURNED, replica("mysql-1", replication=None))
    assert todo.left_out == {"mysql-1": "old"}
    assert todo.steps == ()


def test_a_new_primary_is_not_opened_before_somebody_could_acknowledge():
    todo = left(replace(TWO, replication=None))
    assert Act.GRANT not in [step.act for step in todo.steps]
    assert "takes no writes" in todo.waits


def test_a_term_is_completed_by_its_own_server_only():
    assert "does not answer" in refused(completion(PROMOTED, Topology((THREE,)))).what
    other = replace(TWO, uuid="u9")
    assert isinstance(completion(PROMOTED, Topology((other, THREE))), Refusal)


def test_a_primary_that_lacks_what_another_one_holds_is_not_opened():
    ahead_of_it = ahead(replace(TWO, replication=None), THREE, x3_2="u1:101")
    assert "mysql-3 holds u1:101" in refused(completion(PROMOTED, ahead_of_it)).what
    given_up = replace(PROMOTED, barred={"i-mysql-1": "old", "i-mysql-3": "given up"})
    todo = completion(given_up, ahead_of_it)
    assert isinstance(todo, Completion)
    assert todo.left_out == {"mysql-3": "given up"}

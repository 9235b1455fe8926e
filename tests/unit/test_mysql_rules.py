"""What the rules promise about a MySQL cluster, over many states and every interruption."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mysql_model import NAMES, Model, with_member

from flotilla.rules.mysql import Refusal, Repair, Switchover, Verb, repair, switchover
from flotilla.rules.mysql_topology import Record, Replication, SemiSync, Topology

names = st.sampled_from(NAMES)


def mended(model: Model) -> Model:
    """Repair until nothing is left to do; nobody but the recorded primary is ever writable."""
    plan = planned(model)
    for step in plan.steps:
        model.apply(step, plan.primary.name, plan.term)
        at_most_one_writable(model)
    assert not planned(model).steps, "a repair must leave nothing to repair"
    sources = {server.name: server.source for server in model.all}
    assert sources == dict.fromkeys(NAMES, plan.primary.name) | {plan.primary.name: None}
    return model


def planned(model: Model) -> Repair:
    plan = repair(model.look(), model.record)
    assert isinstance(plan, Repair), plan
    return plan


def at_most_one_writable(model: Model) -> None:
    assert len(model.writable) <= 1
    if model.writable:
        assert model.record is not None
        assert f"i-{model.writable[0]}" == model.record.instance_id


def whole() -> Model:
    return mended(Model())


def refusal(topology: Topology, record: Record | None) -> Refusal:
    decision = repair(topology, record)
    assert isinstance(decision, Refusal), decision
    assert decision.next
    return decision


def candidate(topology: Topology, record: Record | None, to: str | None = None) -> str:
    decision = switchover(topology, record, to, lag_limit_seconds=2)
    assert isinstance(decision, Switchover), decision
    return decision.new.name


def why_not(topology: Topology, record: Record | None, to: str | None = None) -> str:
    decision = switchover(topology, record, to, lag_limit_seconds=2)
    assert isinstance(decision, Refusal), decision
    return decision.what


def test_three_blank_servers_become_a_cluster_under_the_first_name():
    model = whole()
    assert model.writable == ["mysql-1"]
    assert model.record == Record(1, "i-mysql-1", "u-mysql-1")


def test_a_whole_cluster_has_nothing_to_do():
    model = whole()
    assert planned(model).steps == ()


@given(stop=st.integers(0, 8))
def test_a_formation_cut_off_anywhere_is_finished_by_the_next_one(stop):
    model = Model()
    plan = planned(model)
    for step in plan.steps[:stop]:
        model.apply(step, plan.primary.name, plan.term)
    assert mended(model).writable == ["mysql-1"]


@given(restarted=st.sets(names), stop=st.integers(0, 8))
def test_after_any_restart_the_same_primary_serves_again_whatever_is_cut_off(restarted, stop):
    model = whole()
    for name in restarted:
        model.restart(name)
    plan = planned(model)
    for step in plan.steps[:stop]:
        model.apply(step, plan.primary.name, plan.term)
    model = mended(model)
    assert model.writable == ["mysql-1"]
    assert model.record is not None
    assert model.record.term == 1


@given(errant=st.sets(st.sampled_from(NAMES[1:]), min_size=1), restarted=st.sets(names))
def test_nothing_is_done_while_anybody_holds_what_the_primary_lacks(errant, restarted):
    model = whole()
    for name in sorted(restarted | errant):
        model.restart(name)
    for number, name in enumerate(sorted(errant)):
        model.rows(name).add(1000 + number)
    refused = refusal(model.look(), model.record)
    assert all(f"{name} holds" in refused.what for name in errant)


@given(data=st.data())
def test_a_switch_cut_off_anywhere_ends_with_whom_the_record_names(data):
    model = whole()
    old, new = "mysql-1", data.draw(st.sampled_from(NAMES[1:]))
    other = ({*NAMES} - {old, new}).pop()
    done = data.draw(st.integers(0, len(SWITCH)))
    for act in SWITCH[:done]:
        act(model, old, new, other)
        at_most_one_writable(model)
    for name in sorted(data.draw(st.sets(names))):
        model.restart(name)
    model = mended(model)
    assert model.writable == [new if done > SWITCH.index(record) else old]
    assert model.rows(old) == model.rows(new) == model.rows(other)


def line_up(model: Model, old: str, new: str, other: str) -> None:
    model.servers[other].source = new


def pause(model: Model, old: str, new: str, other: str) -> None:
    model.look()
    model.servers[old].read_only = model.servers[old].super_read_only = True


def record(model: Model, old: str, new: str, other: str) -> None:
    assert model.record is not None
    model.record = Record(model.record.term + 1, f"i-{new}", f"u-{new}")


def detach(model: Model, old: str, new: str, other: str) -> None:
    server = model.servers[new]
    server.source, server.running, server.acknowledges, server.waits = None, False, False, True


def open_new(model: Model, old: str, new: str, other: str) -> None:
    assert model.record is not None
    model.open(new, model.record.term)


def turn(model: Model, old: str, new: str, other: str) -> None:
    server = model.servers[old]
    server.waits, server.source, server.running, server.acknowledges = False, new, True, True


SWITCH = [line_up, pause, record, detach, open_new, turn]


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_second_writable_server_is_refused_by_name(name):
    model = whole()
    topology = with_member(model.look(), name, read_only=False, super_read_only=False)
    assert (
        f"{name} is writable, but the record names mysql-1" in refusal(topology, model.record).what
    )


def test_a_record_older_than_the_servers_is_refused():
    model = whole()
    stale = replace(model.record, term=0) if model.record else None
    assert "has seen term 1, the record says 0" in refusal(model.look(), stale).what


def test_a_primary_whose_data_was_replaced_is_refused():
    model = whole()
    topology = with_member(model.look(), "mysql-1", uuid="u-new")
    assert "the record says u-mysql-1" in refusal(topology, model.record).what


def test_a_silent_primary_is_not_replaced_by_anybody():
    model = whole()
    model.silent = {"mysql-1"}
    assert "does not answer" in refusal(model.look(), model.record).what


def test_a_silent_replica_is_noted_and_the_rest_goes_on():
    model = whole()
    model.silent = {"mysql-3"}
    model.restart("mysql-2")
    plan = planned(model)
    assert [step.member for step in plan.steps] == ["mysql-2"]
    assert plan.notes == ("mysql-3 does not answer: it is off",)


def test_no_grant_while_nobody_could_acknowledge():
    model = whole()
    model.restart("mysql-1")
    model.silent = {"mysql-2", "mysql-3"}
    assert "with no replica to acknowledge" in refusal(model.look(), model.record).what


def test_without_a_record_data_is_never_guessed_about():
    model = whole()
    assert "there is no record of a primary, yet" in refusal(model.look(), None).what


def test_without_a_record_every_member_must_be_seen_blank():
    model = Model()
    model.silent = {"mysql-2"}
    assert "not every member answers" in refusal(model.look(), None).what


def test_two_servers_with_one_identity_are_refused():
    model = Model()
    topology = with_member(model.look(), "mysql-2", server_id=1)
    assert "more than one member has server_id 1" in refusal(topology, None).what


def test_a_member_that_could_lose_writes_keeps_everything_waiting():
    model = whole()
    topology = with_member(model.look(), "mysql-3", faults=("relay_log_recovery is ON",))
    assert refusal(topology, model.record).what == "mysql-3: relay_log_recovery is ON"


def test_a_replica_that_lacks_purged_transactions_is_left_for_a_rebuild():
    model = whole()
    model.restart("mysql-3")
    plan = repair(replace(model.look(), stranded=frozenset({"mysql-3"})), model.record)
    assert isinstance(plan, Repair)
    assert plan.steps == ()
    assert "fab mysql.rebuild" in plan.notes[0]


@pytest.mark.parametrize(
    ("error", "is_tried"),
    [
        ("", True),
        (
            "The table 'proof' is full, Error_code: 1114; handler error HA_ERR_RECORD_FILE_FULL",
            True,
        ),
        ("Lock wait timeout exceeded, Error_code: MY-001205", True),
        ("Duplicate entry 'x' for key 'PRIMARY', Error_code: 1062; handler error", False),
        ("something nobody has a number for", False),
    ],
)
def test_an_applier_that_would_stop_there_again_is_not_tried_again_and_again(error, is_tried):
    model = whole()
    topology = model.look()
    stream = next(m.replication for m in topology.members if m.name == "mysql-2")
    assert stream
    topology = with_member(
        topology, "mysql-2", replication=replace(stream, applier="OFF", error=error)
    )
    plan = repair(topology, model.record)
    assert isinstance(plan, Repair)
    assert [step.verb for step in plan.steps] == [Verb.RESUME] * is_tried
    assert any("fab mysql.rebuild mysql-2" in note for note in plan.notes) is not is_tried


def test_a_primary_that_is_offline_is_opened_for_its_replicas_before_they_follow():
    model = whole()
    topology = with_member(model.look(), "mysql-1", offline=True, super_read_only=True)
    plan = repair(topology, model.record)
    assert isinstance(plan, Repair)
    assert next((s.verb, s.member) for s in plan.steps) == (Verb.REOPEN, "mysql-1")


def test_a_replica_that_waits_for_acknowledgements_is_freed_before_it_applies():
    model = whole()
    model.restart("mysql-2")
    model.servers["mysql-2"].waits = True
    verbs = [step.verb for step in planned(model).steps if step.member == "mysql-2"]
    assert verbs[0] is Verb.SOURCE_OFF


@pytest.mark.parametrize("primary", ["", "/tls/server.pem"])
@pytest.mark.parametrize("replica", ["", "/tls/server.pem"])
@pytest.mark.parametrize("verified", ["", "/tls/server.pem"])
def test_a_replica_verifies_once_both_have_a_certificate_and_never_less_than_before(
    primary: str, replica: str, verified: str
) -> None:
    model = whole()
    seen = model.look()
    members = []
    for member in seen.members:
        changes = {"authority": primary if member.name == "mysql-1" else replica}
        stream = member.replication and replace(member.replication, authority=verified)
        members.append(replace(member, replication=stream, **changes))
    plan = repair(replace(seen, members=tuple(members)), model.record)
    assert isinstance(plan, Repair)
    due = ["mysql-2", "mysql-3"] if primary and replica and not verified else []
    assert [(step.verb, step.member) for step in plan.steps] == [(Verb.VERIFY, n) for n in due]


@given(
    outdated=st.sets(st.sampled_from(NAMES[1:])),
    restarted=st.sets(names),
    refuses=st.booleans(),
    stop=st.integers(0, 12),
)
def test_passwords_of_streams_are_renewed_while_somebody_else_acknowledges(
    outdated, restarted, refuses, stop
):
    model = whole()
    for name in restarted:
        model.restart(name)
    model.refuses = refuses
    for name in outdated:
        model.servers[name].outdated = True
    plan = planned(model)
    for step in plan.steps[:stop]:
        model.apply(step, plan.primary.name, plan.term)
    assert not any(server.outdated for server in mended(model).all)


def test_a_stream_that_runs_is_renewed_once_the_primary_lets_the_new_password_in():
    model = whole()
    model.servers["mysql-2"].outdated = True
    plan = repair(replace(model.look(), unusable=frozenset({"replication"})), model.record)
    assert isinstance(plan, Repair)
    assert [step.verb for step in plan.steps] == [Verb.ACCOUNTS, Verb.RENEW]


def test_one_whose_applier_has_stopped_for_good_keeps_its_relay_log():
    model = whole()
    topology = model.look()
    stuck = Replication("host-mysql-1", "ON", "OFF", error="Error_code: MY-001062")
    topology = with_member(
        replace(topology, outdated=frozenset(NAMES[1:])), "mysql-2", replication=stuck
    )
    plan = repair(topology, model.record)
    assert isinstance(plan, Repair)
    assert [step.member for step in plan.steps if step.verb is Verb.RENEW] == ["mysql-3"]
    assert any("fab mysql.rebuild mysql-2" in note for note in plan.notes)


def test_a_primary_with_the_passwords_of_elsewhere_lets_replicas_in_before_they_follow():
    model = whole()
    for name in NAMES:
        model.restart(name)
    there = replace(model.look(), unusable=frozenset({"replication", "monitor"}))
    verbs = [(step.verb, step.member) for step in repair(there, model.record).steps]
    assert verbs[0] == (Verb.BOOTSTRAP, "mysql-1")
    assert {verb for verb, _ in verbs[1:3]} == {Verb.ACKNOWLEDGE}
    assert verbs[-1] == (Verb.ACCOUNTS, "mysql-1")
    verbs = [
        step.verb
        for step in repair(replace(there, outdated=frozenset(NAMES[1:])), model.record).steps
    ]
    assert verbs[:3] == [Verb.BOOTSTRAP, Verb.RENEW, Verb.ACKNOWLEDGE]
    # One that serves has its accounts corrected, and waits for replicas all the time.
    serving = replace(whole().look(), unusable=frozenset({"replication"}))
    steps = repair(serving, model.record).steps
    assert [step.verb for step in steps] == [Verb.ACCOUNTS]


def test_accounts_alone_are_corrected_without_touching_roles():
    model = whole()
    plan = repair(replace(model.look(), unusable=frozenset({"monitor"})), model.record)
    assert isinstance(plan, Repair)
    assert [step.verb for step in plan.steps] == [Verb.ACCOUNTS]


def test_the_nearest_replica_is_promoted():
    model = whole()
    topology = lagging(model.look(), "mysql-2", 1.5)
    assert candidate(topology, model.record) == "mysql-3"
    assert candidate(topology, model.record, "mysql-2") == "mysql-2"


def lagging(topology: Topology, name: str, seconds: float, delay: int = 0) -> Topology:
    member = topology.named(name)
    assert member
    assert member.replication
    behind = replace(member.replication, lag_seconds=seconds, delay_seconds=delay)
    return with_member(topology, name, replication=behind)


def test_the_next_term_follows_the_recorded_one():
    model = whole()
    decision = switchover(model.look(), model.record, None, lag_limit_seconds=2)
    assert isinstance(decision, Switchover)
    assert decision.term == 2
    assert [m.name for m in decision.followers] == ["mysql-3"]


UNFIT = {
    "it lags 3.0 s": lambda t: lagging(t, "mysql-2", 3.0),
    "delayed replica": lambda t: lagging(t, "mysql-2", 0.0, delay=3600),
    "would accept writes": lambda t: with_member(t, "mysql-2", super_read_only=False),
    "follows nobody": lambda t: with_member(t, "mysql-2", replication=None),
    "semi-sync sides wrong": lambda t: with_member(
        t, "mysql-2", semi_sync=SemiSync(source=True, replica=True, acknowledging=True)
    ),
    "does not acknowledge": lambda t: with_member(
        t, "mysql-2", semi_sync=SemiSync(replica=True, acknowledging=False)
    ),
    "is newer than that of": lambda t: with_member(t, "mysql-2", version=(9, 8, 0)),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_an_unfit_replica_is_never_promoted_and_the_reason_is_said(reason):
    model = whole()
    topology = UNFIT[reason](model.look())
    assert reason in why_not(topology, model.record, "mysql-2")
    assert candidate(topology, model.record) == "mysql-3"


@given(lags=st.lists(st.floats(0, 60), min_size=2, max_size=2))
def test_whoever_is_promoted_is_within_the_limit_and_not_further_than_the_other(lags):
    model = whole()
    topology = model.look()
    for name, lag in zip(NAMES[1:], lags, strict=True):
        topology = lagging(topology, name, lag)
    if min(lags) > 2:
        said = why_not(topology, model.record)
        assert "mysql-2" in said
        assert "mysql-3" in said
    else:
        chosen = candidate(topology, model.record)
        assert lags[NAMES.index(chosen) - 1] == min(lags)


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("mysql-1", "it is the primary already"),
        ("mysql-9", "there is no such member; there are mysql-1, mysql-2, mysql-3"),
    ],
)
def test_an_impossible_target_is_refused_with_what_there_is(to, reason):
    model = whole()
    assert reason in why_not(model.look(), model.record, to)


def test_a_primary_that_does_not_serve_is_repaired_before_it_is_switched():
    model = whole()
    model.restart("mysql-1")
    assert "read-only" in why_not(model.look(), model.record)


def test_a_switch_needs_a_record():
    assert "no record" in why_not(whole().look(), None)


@pytest.mark.parametrize(
    ("surplus", "after"),
    [
        ({}, "fab mysql.rejoin mysql-3"),
        ({("mysql-3", "mysql-1"): "u9:1"}, "fab mysql.rebuild mysql-3"),
    ],
)
def test_who_is_kept_out_is_named_with_the_command_that_lets_it_in(surplus, after):
    model = whole()
    found = replace(model.look(), surplus=surplus)
    decision = repair(found, model.record, {"i-mysql-3": "it diverged"})
    assert isinstance(decision, Repair)
    (note,) = decision.notes
    assert "it diverged" in note
    assert note.endswith(after)

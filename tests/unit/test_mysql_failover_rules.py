"""When a failover may begin, who takes over, and in which order: over many states."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_candidate import Found
from flotilla.rules.mysql_failover import Act, How, Opening, Promotion, opening, promotion
from flotilla.rules.mysql_state import Claim, Place, State, absence
from flotilla.rules.mysql_topology import Member, Record, Replication, Topology
from flotilla.rules.mysql_verdict import Kind, Verdict

NOW = 1_000.0
DEAD = Verdict(Kind.DEAD, ("2 of 3 members find mysql-1 gone",), ("mysql-2",), is_actionable=True)
STATE = State(Record(4, "i-mysql-1", "u1"), baseline="u1:1-90")
BOTH = frozenset({"mysql-2", "mysql-3"})


def places(size: int = 3, **rules: str) -> tuple[Place, ...]:
    names = [f"mysql-{n}" for n in range(1, size + 1)]
    return tuple(Place(n, f"i-{n}", f"h-{n}", rule=rules.get(n[-1], "neutral")) for n in names)


def replica(name: str, **changes: object) -> Member:
    """A member that was cut off from mysql-1 a moment ago."""
    blank = Member(
        name, f"i-{name}", f"h-{name}", f"u{name[-1]}", int(name[-1]), (9, 7, 4), True, True,
        executed="u1:1-100", term=4, term_uuid="u1",
        replication=Replication("h-mysql-1", "OFF", "ON", received="u1:1-100"),
    )  # fmt: skip
    return replace(blank, **changes)  # type: ignore[arg-type]


def opened(size: int = 3, *, state: State = STATE, gone: str = "1", **options: object) -> Opening:
    decision = begin(size, state=state, gone=gone, **options)
    assert isinstance(decision, Opening), decision
    return decision


def begin(
    size: int = 3,
    *,
    state: State = STATE,
    gone: str = "1",
    verdict: Verdict = DEAD,
    **options: object,
) -> Opening | Refusal:
    """Ask to begin, with the members whose numbers are in ``gone`` not answering."""
    known = options.pop("known", places(size))
    reachable = [p.name for p in known if p.name[-1] not in gone]  # type: ignore[attr-defined]
    return opening(known, state, verdict, reachable, me="mysql-2", now=NOW, **options)  # type: ignore[arg-type]


def found(*members: Member, **changes: object) -> Found:
    names = frozenset(m.name for m in members)
    return replace(Found(names, {}, "", Topology(members)), **changes)  # type: ignore[arg-type]


def chosen(seen: Found, run: Opening | None = None) -> Promotion:
    decision = promotion(run or opened(), STATE, seen)
    assert isinstance(decision, Promotion), decision
    return decision


def refused(decision: object) -> Refusal:
    assert isinstance(decision, Refusal), decision
    assert decision.next
    return decision


def ahead(*members: Member, **surplus: str) -> Topology:
    """``x2_3="u1:9"``: mysql-2 holds that and mysql-3 does not."""
    pairs = {(f"mysql-{k[1]}", f"mysql-{k[3]}"): gtids for k, gtids in surplus.items()}
    return Topology(members, surplus=pairs)


TWO, THREE = replica("mysql-2"), replica("mysql-3")


# --- the beginning


def test_replicas_are_cut_off_before_the_old_primary_is_fenced_and_positions_come_last():
    acts = [step.act for step in opened().steps]
    assert acts == [Act.REVOKE, Act.REVOKE, Act.FENCE, Act.POSITIONS]


def test_the_term_grows_by_one():
    assert opened().term == 5


def test_an_old_primary_that_answers_is_closed_by_its_own_server():
    blocked = Verdict(Kind.BLOCKED, ("4 commits wait",), is_actionable=True)
    assert opened(gone="", verdict=blocked).how is How.SERVER
    assert opened().how is How.HOST


def test_a_missing_replica_may_hold_the_only_copy_of_an_acknowledged_write():
    refusal = refused(begin(gone="13"))
    assert "1 of 2 members" in refusal.what
    assert "mysql-3: it does not answer" in refusal.what
    assert "--accept-loss" in refusal.next


def test_a_stopped_member_is_told_of_as_what_it_costs():
    """As long as it is not kept out, a failover without it is refused."""
    assert isinstance(begin(gone="13"), Refusal)
    assert "nobody takes over" in absence("mysql-3", "stopped", "")
    assert absence("mysql-3", "stopped", "it diverged").endswith("it is kept out: it diverged")


def test_with_more_waiting_fewer_need_to_be_reached():
    """Each acknowledged write is on two replicas of four: three of them cannot miss it."""
    assert opened(5, gone="12", wait_for=2).needed == 3
    assert isinstance(begin(5, gone="12", wait_for=1), Refusal)


def test_whoever_is_barred_cannot_have_acknowledged():
    state = replace(STATE, barred={"i-mysql-5": "quarantined"})
    run = opened(5, state=state, gone="15")
    assert (run.needed, run.ackers) == (3, ("mysql-2", "mysql-3", "mysql-4"))


def test_nobody_begins_while_somebody_else_is_at_work():
    state = replace(STATE, claim=Claim("ann", 3, NOW + 1, "fab mysql.switchover"))
    assert "ann is changing the cluster" in refused(begin(state=state)).what
    mine = replace(STATE, claim=Claim("mysql-2", 3, NOW + 1))
    assert isinstance(begin(state=mine), Opening)


@pytest.mark.parametrize("kind", [Kind.ALIVE, Kind.SUSPECT, Kind.BLIND])
def test_a_watcher_acts_on_nothing_less_than_a_death(kind):
    assert isinstance(begin(verdict=Verdict(kind, ("it hiccups",))), Refusal)


def test_an_operator_may_act_on_a_suspicion_but_not_replace_a_living_primary():
    suspect = Verdict(Kind.SUSPECT, ("silent for 2.0 s only",))
    assert isinstance(begin(verdict=suspect, manual=True), Opening)
    for alive in (
        Verdict(Kind.ALIVE, ("it answers",)),
        Verdict(Kind.BLIND, ("cut off",), alive_for=("mysql-3",)),
    ):
        assert refused(begin(verdict=alive, manual=True)).next == "fab mysql.switchover"


def test_a_primary_that_acknowledged_alone_is_given_up_only_in_so_many_words():
    assert "on its own" in refused(begin(degraded="12 commits without a replica")).what
    assert isinstance(begin(degraded="12 commits", accept_loss=True), Opening)


def test_a_primary_that_the_inventory_does_not_know_is_not_replaced():
    state = replace(STATE, record=Record(4, "i-gone", "u9"))
    assert "i-gone" in refused(begin(state=state)).what


# --- who takes over


def test_the_record_is_changed_before_anybody_turns_to_the_new_primary():
    acts = [step.act for step in chosen(found(TWO, THREE)).steps]
    assert acts == [
        Act.DRAIN, Act.RECORD, Act.DETACH, Act.REPOINT, Act.GRANT, Act.VERIFY, Act.FENCED,
    ]  # fmt: skip


def test_one_proof_is_enough_and_the_fence_is_verified_behind_it():
    plan = chosen(found(TWO, THREE))
    assert "mysql-2, mysql-3 acknowledge nothing to mysql-1" in plan.proof
    verified = chosen(found(TWO, THREE, fenced="stopped"))
    assert Act.FENCED not in [step.act for step in verified.steps]


def test_without_enough_members_the_fence_is_waited_for_before_all_else():
    run = opened(gone="13", accept_loss=True)
    plan = chosen(found(TWO), run)
    assert plan.steps[0].act is Act.FENCED
    assert not plan.proof
    assert plan.notes == ("mysql-2 takes no writes before 1 members acknowledge to it",)


def test_whoever_holds_everything_takes_over():
    seen = found(TWO, THREE, topology=ahead(TWO, THREE, x3_2="u1:101"))
    plan = chosen(seen)
    assert plan.new is THREE
    assert dict(plan.table)["mysql-2"] == "it lacks u1:101 of mysql-3"


def test_diverged_members_are_refused_with_what_each_holds():
    seen = found(TWO, THREE, topology=ahead(TWO, THREE, x3_2="u1:101", x2_3="u1:102"))
    refusal = refused(promotion(opened(), STATE, seen))
    assert "u1:101 of mysql-3" in refusal.what
    assert "u1:102 of mysql-2" in refusal.what


def test_an_operator_may_give_up_what_one_of_them_lacks_and_is_told_what():
    seen = found(TWO, THREE, topology=ahead(TWO, THREE, x3_2="u1:101", x2_3="u1:102"), fenced="off")
    plan = chosen(seen, opened(accept_loss=True, to="mysql-2"))
    assert (plan.new.name, plan.given_up) == ("mysql-2", "u1:101")
    assert plan.followers == ()
    assert "i-mysql-3" in plan.barred
    assert isinstance(promotion(opened(to="mysql-2"), STATE, seen), Refusal)


def test_what_the_old_primary_began_its_term_with_must_be_there():
    """What earlier terms acknowledged may have reached nobody else yet."""
    assert chosen(found(TWO, THREE, owed={"mysql-2": "u1:89-90"})).new is THREE
    both = found(TWO, THREE, owed={"mysql-2": "u1:89-90", "mysql-3": "u1:88-90"}, fenced="off")
    assert "u1:88-90 of earlier terms" in refused(promotion(opened(), STATE, both)).what
    assert chosen(both, opened(accept_loss=True, to="mysql-2")).given_up == "u1:89-90"


def test_errant_transactions_disqualify_and_are_named():
    seen = found(TWO, THREE, errant={"mysql-2": "u2:1"})
    plan = chosen(seen)
    assert plan.new is THREE
    assert "u2:1" in " ".join(plan.notes)


def test_a_delayed_replica_is_taken_only_if_it_alone_has_the_last_writes():
    late = replica("mysql-2", replication=replace(THREE.replication, delay_seconds=3600))
    assert chosen(found(late, THREE)).new is THREE
    alone = found(late, THREE, topology=ahead(late, THREE, x2_3="u1:101"))
    acts = [step.act for step in chosen(alone).steps]
    assert acts[:3] == [Act.UNDELAY, Act.DRAIN, Act.RECORD]


def test_a_stuck_applier_disqualifies_whoever_holds_more_than_it_applied():
    stuck = replica(
        "mysql-2",
        replication=Replication("h-mysql-1", "OFF", "OFF", "u1:1-100", error="duplicate key"),
    )
    assert chosen(found(stuck, THREE, unapplied={"mysql-2": "u1:100"})).new is THREE
    assert chosen(found(stuck, THREE)).new is stuck
    runs = replace(stuck, replication=replace(stuck.replication, applier="ON"))
    assert chosen(found(runs, THREE, unapplied=dict.fromkeys(BOTH, "u1:100"))).new is runs
    both = replace(stuck, name="mysql-3", instance_id="i-mysql-3")
    seen = found(stuck, both, unapplied={"mysql-2": "u1:100", "mysql-3": "u1:99"})
    assert "duplicate key" in refused(promotion(opened(), STATE, seen)).what


def test_the_next_one_is_taken_where_the_first_could_not_apply_all():
    assert chosen(found(TWO, THREE)).new is TWO
    assert chosen(found(TWO, THREE, unable={"mysql-2": "30 s were not enough"})).new is THREE


def test_a_source_is_not_newer_than_what_follows_it():
    newer = replica("mysql-2", version=(9, 8, 0))
    assert chosen(found(newer, THREE)).new is THREE


def test_a_server_that_could_lose_what_it_acknowledges_is_not_promoted():
    weak = replica("mysql-2", faults=("relay_log_recovery is ON, must be OFF",))
    assert chosen(found(weak, THREE)).new is THREE


@pytest.mark.parametrize(
    ("rules", "new"),
    [
        ({"3": "prefer"}, "mysql-3"),
        ({"2": "prefer_not"}, "mysql-3"),
        ({"2": "must_not"}, "mysql-3"),
    ],
)
def test_settings_say_who_is_wanted(rules, new):
    run = opened(known=places(3, **rules))
    assert chosen(found(TWO, THREE), run).new.name == new


def test_a_member_that_fell_silent_after_it_was_cut_off_counts_for_nothing():
    seen = Found(BOTH, {}, "", Topology((TWO,), {"mysql-3": "it does not answer"}))
    assert "1 of 2 members" in refused(promotion(opened(), STATE, seen)).what


def test_everybody_who_is_not_known_to_be_whole_is_barred_with_the_record():
    plan = chosen(found(TWO, THREE))
    assert plan.barred.keys() == {"i-mysql-1"}
    assert plan.record == Record(5, "i-mysql-2", "u2")
    assert plan.baseline == "u1:1-100,u1:1-100"


def test_nobody_is_promoted_to_wait_for_acknowledgements_for_ever():
    """And the old primary is not closed for it: a blocked one may come back by itself."""
    state = replace(STATE, barred={"i-mysql-3": "quarantined"})
    assert "0 members could acknowledge" in refused(begin(state=state, gone="1")).what
    assert isinstance(begin(state=state, gone="1", accept_loss=True), Opening)


def test_who_came_back_behind_a_primary_that_is_dead_may_acknowledge_to_the_next_one():
    """It was away when that one began: it proves nothing, is asked nothing, and stays barred."""
    away = "not known to be whole when mysql-1 became primary of term 4"
    state = replace(STATE, barred={"i-mysql-3": away})
    run = opened(state=state, gone="1")
    assert (run.asked, run.returning) == (("mysql-2",), ("mysql-3",))
    plan = promotion(run, state, found(TWO))
    assert isinstance(plan, Promotion)
    assert (plan.new, plan.followers) == (TWO, ())
    assert plan.barred == {"i-mysql-3": away, "i-mysql-1": plan.barred["i-mysql-1"]}
    assert "takes no writes before 1 members" in plan.notes[0]
    assert isinstance(begin(state=state, gone="13"), Refusal)
    blocked = Verdict(Kind.BLOCKED, ("4 commits wait",), is_actionable=True)
    assert isinstance(begin(state=state, gone="", verdict=blocked), Refusal)


OUT = replace(STATE, barred={"i-mysql-3": "only it holds u3:1-2"})


def test_who_is_kept_out_is_named_where_nobody_else_answers():
    refusal = refused(begin(state=OUT, gone="12", accept_loss=True))
    assert "mysql-3: only it holds u3:1-2" in refusal.what
    assert "fab mysql.failover --to mysql-3 --accept-loss" in refusal.next
    assert "--to mysql-3" in refused(begin(state=OUT, gone="12")).next
    assert isinstance(begin(state=OUT, gone="12", to="mysql-3"), Refusal)


def test_an_operator_may_take_one_that_is_kept_out_where_nobody_else_answers():
    """It proves nothing about the old primary, so the fence comes first of all."""
    run = opened(state=OUT, gone="12", accept_loss=True, to="mysql-3")
    assert [step.member for step in run.steps if step.act is Act.REVOKE] == ["mysql-3"]
    decision = promotion(run, OUT, found(THREE, owed={"mysql-3": "u1:88-90"}))
    assert isinstance(decision, Promotion)
    assert (decision.new, decision.steps[0].act) == (THREE, Act.FENCED)
    assert decision.given_up == "u1:88-90"
    assert decision.barred.keys() == {"i-mysql-1", "i-mysql-2"}


def test_one_that_is_kept_out_is_not_taken_while_somebody_better_answers():
    run = opened(state=OUT, gone="1", accept_loss=True, to="mysql-3")
    assert run.asked == ("mysql-2",)
    assert "mysql-3 cannot" in refused(promotion(run, OUT, found(TWO))).what


@pytest.mark.parametrize("half", [{"closed": True}, {"executed": ""}])
def test_nobody_is_promoted_without_its_data(half):
    run = opened(state=OUT, gone="12", accept_loss=True, to="mysql-3")
    refusal = refused(promotion(run, OUT, found(replica("mysql-3", **half), fenced="stopped")))
    assert "its data is not there" in refusal.what


# --- over many states


@st.composite
def ends(draw):
    """A run's opening, and what it found: positions are counts of transactions, some errant."""
    size = draw(st.sampled_from([3, 5]))
    wait_for = draw(st.integers(1, size // 2))
    lossy = draw(st.booleans())
    gone = "1" + "".join(draw(st.sets(st.sampled_from("2345"[: size - 1]))))
    run = begin(size, gone=gone, wait_for=wait_for, accept_loss=lossy)
    held = {n: draw(st.integers(90, 93)) for n in run.ackers} if isinstance(run, Opening) else {}
    cut_off = frozenset(name for name in held if draw(st.integers(0, 5)))
    silent = {name for name in held if not draw(st.integers(0, 8))}
    stray = {name: "u9:1" for name in held if not draw(st.integers(0, 6))}
    members = tuple(replica(name) for name in held if name not in silent)
    surplus = {
        (a, b): f"u1:{held[b] + 1}-{held[a]}"
        for a in held
        for b in held
        if held[a] > held[b] and not {a, b} & silent
    }
    seen = Found(
        cut_off, {}, draw(st.sampled_from(["", "stopped"])),
        Topology(members, dict.fromkeys(silent, "no answer"), surplus), errant=stray,
    )  # fmt: skip
    return run, seen, held, wait_for


@given(ends())
def test_whoever_is_promoted_holds_all_that_can_have_been_acknowledged(end):
    run, seen, held, wait_for = end
    if isinstance(run, Refusal):
        return
    plan = promotion(run, STATE, seen)
    if isinstance(plan, Refusal):
        assert plan.what
        assert plan.why
        return
    asked = (seen.revoked - seen.topology.silent.keys()) & set(held)
    assert plan.new.name in asked
    assert held[plan.new.name] == max(held[name] for name in asked)
    assert plan.new.name not in seen.errant
    unseen = len(run.ackers) - len(asked)
    acts = [step.act for step in plan.steps]
    if unseen >= wait_for:
        assert run.accept_loss
        assert seen.fenced or acts[0] is Act.FENCED
    else:
        assert len(plan.followers) >= wait_for or run.accept_loss
    turns = [acts.index(a) for a in (Act.DETACH, Act.REPOINT, Act.GRANT) if a in acts]
    assert acts.index(Act.RECORD) < min(turns)


@given(ends())
def test_who_neither_takes_over_nor_follows_is_barred(end):
    run, seen, *_ = end
    if isinstance(run, Refusal):
        return
    plan = promotion(run, STATE, seen)
    if isinstance(plan, Promotion):
        whole = {plan.new.instance_id, *(m.instance_id for m in plan.followers)}
        assert plan.barred.keys() == {p.instance_id for p in run.places} - whole
        assert "i-mysql-1" in plan.barred

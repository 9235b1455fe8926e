"""When a MySQL primary is called dead, and everything that must not be taken for its death."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.mysql_verdict import (
    ANSWERED,
    LIMITS,
    Kind,
    Look,
    Reach,
    Stream,
    Verdict,
    judge,
    majority,
)

PRIMARY = "mysql-1"
THREE = ("mysql-1", "mysql-2", "mysql-3")
FIVE = (*THREE, "mysql-4", "mysql-5")

ANSWERING = Look(Reach.ANSWERS, answered_age=0.0)
CLOSED = Look(Reach.REFUSES, answered_age=0.6, failures=3)
SILENT = Look(Reach.SILENT, answered_age=3.0, failures=6)
LIVE = Stream("mysql-3", PRIMARY, "ON", heartbeat_age=0.4, queued_age=20.0)
BROKEN = Stream("mysql-3", PRIMARY, "CONNECTING", heartbeat_age=0.5, error=2003, text="no host")
MUTE = Stream("mysql-3", PRIMARY, "ON", heartbeat_age=3.1, queued_age=9.0)


def rule(look: Look, *streams: Stream, members: tuple[str, ...] = THREE, **absent: str) -> Verdict:
    """What mysql-2 rules; its own stream is like the first one unless it is given."""
    own = (
        ()
        if any(s.member == "mysql-2" for s in streams)
        else (replace(streams[0], member="mysql-2"),)
    )
    return judge("mysql-2", PRIMARY, members, look, (*own, *streams), unreached=absent)


def test_a_killed_server_is_dead_within_a_second():
    verdict = rule(CLOSED, BROKEN)
    assert verdict.kind is Kind.DEAD
    assert verdict.is_actionable
    assert verdict.confirms == ("mysql-2", "mysql-3")
    assert "refuses" in verdict.evidence[1]


@pytest.mark.parametrize("stream", [MUTE, BROKEN])
def test_a_frozen_or_cut_off_primary_is_dead_after_two_missed_heartbeats(stream):
    assert rule(SILENT, stream).kind is Kind.DEAD


def test_a_hiccup_is_no_death():
    assert rule(replace(CLOSED, answered_age=0.2), BROKEN).kind is Kind.SUSPECT
    assert rule(replace(CLOSED, failures=1), BROKEN).kind is Kind.SUSPECT
    assert rule(replace(SILENT, answered_age=2.0), MUTE).kind is Kind.SUSPECT


UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
QUICK = Stream(
    "mysql-3", PRIMARY, "ON", heartbeat_age=40.0, queued_age=6.1, queued=f"{UUID}:100",
    received=f"{UUID}:1-100", sees=Reach.SILENT,
)  # fmt: skip
# It reads on in what waits in its socket.
BEHIND = replace(
    QUICK, member="mysql-2", queued_age=0.3, queued=f"{UUID}:97", received=f"{UUID}:1-97"
)


@pytest.mark.parametrize("state", ["ON", "CONNECTING"])
def test_what_another_had_long_before_is_no_sign_of_life(state):
    verdict = rule(SILENT, replace(QUICK, state=state), BEHIND)
    assert verdict.kind is Kind.DEAD
    said = "the last word is 0.3 s old, and mysql-3 had it before: 6.1 s old"
    assert any(said in word for word in verdict.evidence)


@pytest.mark.parametrize(
    ("behind", "quick"),
    [
        ({"queued": f"{UUID}:101"}, {}),  # nobody had it before
        ({"sees": Reach.ANSWERS}, {}),
        ({"sees": None}, {}),  # it may be far behind, and catching up
        ({"heartbeat_age": 0.4}, {}),
        ({"queued": ""}, {}),
        ({"queued": "no GTID"}, {}),
        ({}, {"received": "no GTID"}),
        ({}, {"queued_age": 1.0}),
        ({}, {"answer_seconds": 1.0}),
        ({}, {"source": "mysql-9"}),
        ({}, {"state": "OFF"}),
        ({}, {"state": "CONNECTING", "queued_age": 400.0}),  # it was not there to hear more
    ],
)
def test_a_last_word_that_may_be_new_is_a_sign_of_life(behind, quick):
    verdict = rule(SILENT, replace(QUICK, **quick), replace(BEHIND, **behind))
    assert verdict.kind is not Kind.DEAD


def test_a_watcher_that_is_cut_off_alone_sees_that_it_is_blind():
    verdict = rule(SILENT, LIVE, replace(BROKEN, member="mysql-2"))
    assert verdict.kind is Kind.BLIND
    assert verdict.alive_for == ("mysql-3",)


def test_a_watcher_that_reaches_nobody_is_blind():
    own = replace(BROKEN, member="mysql-2")
    verdict = judge("mysql-2", PRIMARY, THREE, SILENT, [own], unreached={"mysql-3": "no route"})
    assert verdict.kind is Kind.BLIND
    assert "mysql-3 cannot be asked: no route" in verdict.evidence


@pytest.mark.parametrize("code", sorted(ANSWERED))
def test_a_server_that_refuses_with_an_error_is_alive(code):
    assert rule(replace(SILENT, error=code), BROKEN).kind is Kind.ALIVE
    refused = replace(BROKEN, error=code, text="says the server")
    assert rule(SILENT, refused).kind is not Kind.DEAD


def test_a_server_that_is_shutting_down_is_not_alive_for_its_last_words():
    assert rule(replace(CLOSED, error=1053), BROKEN).kind is Kind.DEAD


def test_a_server_that_shuts_down_is_dead_though_its_replicas_have_not_left_yet():
    closed = replace(CLOSED, answered_age=1.1)
    seen = replace(LIVE, sees=Reach.REFUSES)
    verdict = rule(closed, seen)
    assert verdict.kind is Kind.DEAD
    assert verdict.confirms == ("mysql-2", "mysql-3")
    # A quick restart is waited for, and whoever gets through, or cannot say, has the last word.
    assert rule(replace(closed, answered_age=0.9), seen).kind is Kind.BLIND
    for sees in (Reach.ANSWERS, Reach.SILENT, None):
        own = replace(seen, member="mysql-2")
        assert rule(closed, replace(LIVE, sees=sees), own).kind is Kind.BLIND


def test_silence_is_not_believed_of_a_member_that_answers_late():
    late = replace(MUTE, answer_seconds=1.2)
    verdict = rule(SILENT, late)
    assert verdict.kind is Kind.SUSPECT
    assert "1.2 s to answer" in " ".join(verdict.evidence)


def test_a_watcher_takes_its_own_absence_out_of_the_age():
    assert rule(replace(SILENT, answered_age=9.0, absent=7.0), MUTE).kind is Kind.SUSPECT
    assert rule(replace(SILENT, answered_age=10.0, absent=7.0), MUTE).kind is Kind.DEAD


def test_heartbeats_are_not_missed_while_rows_arrive():
    """They are sent only while there is nothing else to send."""
    busy = replace(MUTE, queued_age=0.1)
    assert rule(SILENT, busy).kind is not Kind.DEAD


def test_a_stream_that_somebody_stopped_says_nothing_about_its_source():
    stopped = replace(BROKEN, state="OFF", error=0)
    assert rule(SILENT, stopped).kind is Kind.SUSPECT
    tried = replace(stopped, sees=Reach.SILENT)
    assert rule(SILENT, tried).kind is Kind.DEAD


def test_a_failover_that_hangs_after_it_stopped_the_streams_holds_up_no_other_one():
    """Nobody acknowledges there and no watcher will start it again; one that answers has a word."""
    stopped = replace(BROKEN, state="OFF", error=0)
    assert rule(SILENT, replace(stopped, is_unwatched=True)).kind is Kind.DEAD
    assert rule(SILENT, replace(stopped, is_unwatched=True, source="")).kind is Kind.SUSPECT
    assert rule(SILENT, replace(LIVE, is_unwatched=True)).kind is Kind.BLIND
    soon = replace(SILENT, answered_age=LIMITS.silent / 2)
    assert rule(soon, replace(stopped, is_unwatched=True)).kind is Kind.SUSPECT


def test_who_follows_somebody_else_neither_confirms_nor_vetoes():
    other = replace(BROKEN, source="mysql-9")
    assert rule(SILENT, other, replace(BROKEN, member="mysql-2")).kind is Kind.SUSPECT
    fresh = replace(LIVE, source="mysql-9")
    third = replace(BROKEN, member="mysql-4")
    streams_of_five = (fresh, third, replace(BROKEN, member="mysql-5"))
    own = replace(BROKEN, member="mysql-2")
    assert rule(SILENT, own, *streams_of_five, members=FIVE).kind is Kind.DEAD


def test_who_follows_somebody_else_says_how_its_own_watcher_meets_the_primary():
    """As a switchover leaves it whose operator was killed."""
    turned = replace(LIVE, source="mysql-2")
    for sees, kind in (
        (None, Kind.SUSPECT),
        (Reach.ANSWERS, Kind.BLIND),
        (Reach.SILENT, Kind.DEAD),
        (Reach.REFUSES, Kind.DEAD),
    ):
        assert rule(SILENT, replace(turned, sees=sees)).kind is kind


def test_whoever_proposes_has_found_it_out_for_himself():
    own = replace(BROKEN, member="mysql-2", state="OFF", error=0)
    others = [replace(BROKEN, member=f"mysql-{n}") for n in (3, 4, 5)]
    assert rule(SILENT, own, *others, members=FIVE).kind is Kind.SUSPECT


def test_a_member_whose_watcher_gets_answers_vetoes_though_its_stream_is_broken():
    assert rule(SILENT, replace(BROKEN, sees=Reach.ANSWERS)).kind is Kind.BLIND


def test_a_primary_that_nobody_acknowledges_to_is_blocked_and_acted_on_when_it_lasts():
    look = replace(ANSWERING, waiting=4, blocked_seconds=2.0)
    streams = (BROKEN, replace(BROKEN, sees=Reach.ANSWERS))
    for stream in streams:
        assert rule(look, stream).kind is Kind.BLOCKED
        assert not rule(look, stream).is_actionable
        assert rule(replace(look, blocked_seconds=LIMITS.blocked), stream).is_actionable


def test_one_broken_replica_of_two_does_not_make_a_primary_blocked():
    look = replace(ANSWERING, waiting=4, blocked_seconds=60.0)
    assert rule(look, BROKEN, replace(LIVE, member="mysql-2")).kind is Kind.ALIVE


def test_a_full_disk_is_named_and_acted_on_when_it_lasts():
    look = replace(ANSWERING, stalled="disk is full", blocked_seconds=5.0)
    verdict = rule(look, LIVE)
    assert verdict.kind is Kind.BLOCKED
    assert "disk is full" in verdict.evidence[0]
    assert not verdict.is_actionable
    assert rule(replace(look, blocked_seconds=LIMITS.stalled), LIVE).is_actionable


def test_waiting_commits_of_a_long_table_change_are_no_failure():
    look = replace(ANSWERING, waiting=0, blocked_seconds=600.0)
    assert rule(look, replace(LIVE, queued_age=600.0)).kind is Kind.ALIVE


def test_two_of_five_are_too_few_to_call_a_primary_dead():
    away = {"mysql-4": "no route", "mysql-5": "no route"}
    verdict = judge(
        "mysql-2",
        PRIMARY,
        FIVE,
        SILENT,
        [replace(BROKEN, member="mysql-2"), BROKEN],
        unreached=away,
    )
    assert verdict.kind is Kind.BLIND
    third = replace(BROKEN, member="mysql-4")
    assert rule(SILENT, BROKEN, third, members=FIVE, **{"mysql-5": "no route"}).kind is Kind.DEAD


def test_a_cluster_of_two_never_fails_over_by_itself():
    own = replace(BROKEN, member="mysql-2")
    verdict = judge("mysql-2", PRIMARY, THREE[:2], CLOSED, [own], unreached={})
    assert not verdict.is_actionable


ages = st.one_of(st.none(), st.floats(0, 30))
looks = st.builds(
    Look,
    reach=st.sampled_from(Reach),
    answered_age=st.floats(0, 30),
    failures=st.integers(0, 9),
    absent=st.floats(0, 30),
    error=st.sampled_from([0, 0, 0, 1040, 1045, 1053]),
    waiting=st.integers(0, 3),
    blocked_seconds=st.floats(0, 60),
    stalled=st.sampled_from(["", "", "disk is full"]),
)


def streams(name: str) -> st.SearchStrategy[Stream]:
    return st.builds(
        Stream,
        member=st.just(name),
        source=st.sampled_from([PRIMARY, PRIMARY, PRIMARY, "", "mysql-9"]),
        state=st.sampled_from(["ON", "OFF", "CONNECTING"]),
        heartbeat_age=ages,
        queued_age=ages,
        answer_seconds=st.floats(0, 2),
        error=st.sampled_from([0, 2003, 2013, 1045, 1040]),
        sees=st.sampled_from([None, None, *Reach]),
        is_unwatched=st.booleans(),
    )


@st.composite
def worlds(draw):
    """Members, a look, and streams from some of the replicas."""
    members = draw(st.sampled_from([THREE, FIVE]))
    heard = [n for n in members[1:] if n == "mysql-2" or draw(st.booleans())]
    return members, draw(looks), [draw(streams(name)) for name in heard]


@given(worlds())
def test_dead_is_never_ruled_against_a_sign_of_life(world):
    members, look, heard = world
    verdict = judge("mysql-2", PRIMARY, members, look, heard, unreached={})
    if verdict.kind is not Kind.DEAD:
        return
    assert look.reach is not Reach.ANSWERS
    assert look.error not in ANSWERED
    assert look.answered_age - look.absent >= LIMITS.refused
    assert len(verdict.confirms) >= majority(members)
    assert "mysql-2" in verdict.confirms
    for stream in heard:
        assert stream.sees is not Reach.ANSWERS
        following = stream.source == PRIMARY
        fresh = following and stream.state == "ON" and stream.silent_seconds < LIMITS.silent
        closed = look.reach is Reach.REFUSES and look.answered_age - look.absent >= LIMITS.closed
        assert not fresh or (closed and stream.sees is Reach.REFUSES)
        assert not (following and stream.state != "ON" and stream.error in ANSWERED)


@given(worlds(), st.floats(0.1, 60))
def test_more_absence_of_the_judge_never_makes_a_primary_deader(world, longer):
    members, look, heard = world
    before = judge("mysql-2", PRIMARY, members, look, heard, unreached={})
    held_up = replace(look, absent=look.absent + longer)
    after = judge("mysql-2", PRIMARY, members, held_up, heard, unreached={})
    assert not (after.kind is Kind.DEAD and before.kind is not Kind.DEAD)


@given(worlds())
def test_every_ruling_gives_its_evidence(world):
    members, look, heard = world
    verdict = judge("mysql-2", PRIMARY, members, look, heard, unreached={})
    text = " ".join(verdict.evidence)
    assert all(stream.member in text for stream in heard)
    assert verdict.is_actionable <= (verdict.kind in {Kind.DEAD, Kind.BLOCKED})

"""What a member's watcher does to it after a start, a heal, or a change of primary."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.mysql_gtid import foreign
from flotilla.rules.mysql_rejoin import CLOSING, OPENING, Advice, Do, Peers, advise
from flotilla.rules.mysql_state import Claim, Pause, State
from flotilla.rules.mysql_topology import Member, Record, Replication, SemiSync

NOW = 1_000.0


def member(name: str, **changes: object) -> Member:
    """A replica that was just started: read-only, following nobody, no side of semi-sync on."""
    number = int(name[-1])
    blank = Member(
        name, f"i-{name}", f"10.0.0.{number}", f"u{number}", number, (9, 7, 4), True, True
    )
    return replace(blank, **changes)  # type: ignore[arg-type]


def following(source: str, **changes: object) -> dict[str, object]:
    stream = replace(Replication(source, "ON", "ON"), **changes)  # type: ignore[arg-type]
    return {"replication": stream, "semi_sync": SemiSync(replica=True, acknowledging=True)}


STATE = State(Record(3, "i-mysql-1", "u1"), fence=7, claim=Claim("", 7, 0.0))
SERVING = member(
    "mysql-1", read_only=False, super_read_only=False, term=3, term_uuid="u1",
    semi_sync=SemiSync(source=True, clients=1),
)  # fmt: skip
RESTARTED = member("mysql-1", term=3, term_uuid="u1")
REPLICA = member("mysql-2", **following("10.0.0.1"))
PEERS = Peers(SERVING)
BARRED = replace(STATE, barred={"i-mysql-2": "not known to be whole"})


def ruled(me: Member, state: State | None = STATE, peers: Peers = PEERS) -> Advice:
    return advise(me, state, peers, holder=me.name, now=NOW)


def test_who_serves_and_who_follows_are_left_alone():
    assert ruled(SERVING).do is Do.NOTHING
    assert ruled(REPLICA).do is Do.NOTHING


def test_a_restarted_primary_is_granted_its_role_again_once_somebody_acknowledges():
    assert ruled(RESTARTED, peers=Peers(RESTARTED)).do is Do.WAIT
    advice = ruled(RESTARTED, peers=Peers(RESTARTED, acknowledgers=["mysql-2"]))
    assert advice.do is Do.GRANT
    assert advice.needs_lease


def test_a_primary_that_was_closed_for_nothing_lets_its_replicas_in_before_it_waits_for_them():
    """A failover that came to nothing leaves it offline: nobody could ever acknowledge to it."""
    closed = replace(RESTARTED, offline=True)
    advice = ruled(closed, peers=Peers(closed))
    assert (advice.do, advice.needs_lease) == (Do.REOPEN, True)
    claimed = replace(STATE, claim=Claim("mysql-2", 8, NOW + 9))
    assert ruled(closed, claimed, peers=Peers(closed)).do is Do.WAIT
    copied = replace(closed, closed=True)
    assert ruled(copied, peers=Peers(copied)).do is Do.WAIT


def test_a_primary_that_acknowledges_alone_is_made_to_wait_whoever_is_there():
    alone = replace(SERVING, semi_sync=SemiSync())
    assert ruled(alone, peers=Peers(alone)).do is Do.GRANT
    assert ruled(replace(alone, offline=True), peers=Peers(alone)).do is Do.WAIT


def test_a_primary_that_lacks_what_others_hold_is_not_opened():
    peers = Peers(RESTARTED, lacks="u1:900-901", acknowledgers=["mysql-2"])
    assert ruled(RESTARTED, peers=peers).do is Do.WAIT
    assert "u1:900-901" in ruled(RESTARTED, peers=peers).why


def test_a_primary_that_was_closed_while_its_commits_waited_is_opened_again():
    """Others hold what it has not committed; a restart would have committed it."""
    closed = replace(SERVING, offline=True)
    peers = Peers(closed, lacks="u1:900", acknowledgers=["mysql-2"])
    assert ruled(closed, peers=peers).do is Do.GRANT
    assert ruled(closed, peers=replace(peers, lacks="u2:9")).do is Do.WAIT


def test_a_primary_whose_data_was_replaced_is_not_opened():
    assert ruled(replace(RESTARTED, uuid="u9")).do is Do.WAIT
    assert ruled(replace(SERVING, uuid="u9")).do is Do.CLOSE


def test_an_old_primary_that_can_be_written_to_closes_itself_before_all_else():
    old = replace(SERVING, name="mysql-2", instance_id="i-mysql-2", uuid="u2")
    busy = replace(STATE, claim=Claim("mysql-3", 8, NOW + 9), paused=Pause("ann", "", NOW + 9))
    for state in (STATE, busy, BARRED):
        assert ruled(old, state).do is Do.CLOSE
        assert not ruled(old, state).needs_lease


def test_an_old_primary_without_surplus_is_let_in_before_it_acknowledges():
    advice = ruled(member("mysql-2"), BARRED)
    assert (advice.do, advice.unbar, advice.needs_lease) == (Do.FOLLOW, True, True)


def test_an_old_primary_with_surplus_is_kept_out_and_its_surplus_named():
    advice = ruled(member("mysql-2"), BARRED, Peers(SERVING, surplus="u2:41-43"))
    assert (advice.do, advice.gtids) == (Do.QUARANTINE, "u2:41-43")
    noted = replace(BARRED, barred={"i-mysql-2": advice.why})
    again = ruled(member("mysql-2"), noted, Peers(SERVING, surplus="u2:41-43"))
    assert again.do is Do.WAIT
    assert "fab mysql.rebuild mysql-2" in again.why


def test_what_was_acknowledged_to_a_former_primary_is_not_applied_where_others_lack_it():
    """Its own stream brought it, but from a source that is primary no more."""
    late = member("mysql-2", **following("10.0.0.3", io="OFF", applier="OFF"))
    advice = ruled(late, peers=Peers(SERVING, surplus="u3:77"))
    assert advice.do is Do.QUARANTINE


def test_what_a_live_stream_is_ahead_by_is_no_surplus():
    """A replica has a transaction before its source commits it."""
    assert ruled(REPLICA, peers=Peers(SERVING, surplus="u1:500-502")).do is Do.NOTHING
    assert ruled(REPLICA, BARRED, Peers(SERVING, surplus="u1:500")).do is Do.QUARANTINE
    errant = Peers(SERVING, surplus="u1:500,u2:1")
    assert ruled(REPLICA, peers=errant).do is Do.QUARANTINE


def test_a_member_that_lacks_purged_transactions_goes_straight_to_a_copy():
    assert ruled(member("mysql-2"), peers=Peers(SERVING, stranded=True)).do is Do.CLONE


@pytest.mark.parametrize(
    ("me", "do"),
    [
        (member("mysql-2", **following("10.0.0.3")), Do.REPOINT),
        (member("mysql-2", **following("10.0.0.1", io="OFF", applier="OFF")), Do.RESUME),
        (
            member(
                "mysql-2", **following("10.0.0.1", applier="OFF", error="full, Error_code: 1114;")
            ),
            Do.RESUME,
        ),
        (replace(REPLICA, semi_sync=SemiSync()), Do.ACKNOWLEDGE),
        (replace(REPLICA, semi_sync=SemiSync(replica=True)), Do.ACKNOWLEDGE),
        (replace(REPLICA, semi_sync=SemiSync(source=True)), Do.SOURCE_OFF),
        (replace(REPLICA, offline=True), Do.REOPEN),
        (
            member("mysql-2", **following("10.0.0.1", applier="OFF", error="duplicate key")),
            Do.WAIT,
        ),
    ],
)
def test_a_replica_is_made_to_follow(me, do):
    assert ruled(me).do is do


def test_a_source_that_is_primary_now_first_applies_what_it_received_and_follows_nobody():
    promoted = replace(RESTARTED, **following("10.0.0.3", io="OFF"))
    assert ruled(promoted, peers=Peers(promoted, acknowledgers=["mysql-2"])).do is Do.DETACH


def test_nothing_is_known_without_a_record_or_without_its_primary():
    assert ruled(SERVING, None).do is Do.WAIT
    assert ruled(member("mysql-2"), peers=Peers(None)).do is Do.WAIT


def test_acknowledging_begins_under_the_lease_only():
    stopped = member("mysql-2", **following("10.0.0.1", io="OFF"))
    for claim in (None, Claim("", 7, 0.0), Claim("mysql-3", 8, NOW - 1)):
        assert ruled(stopped, replace(STATE, claim=claim)).needs_lease


def test_a_set_is_split_by_who_wrote_it_and_tags_stay_with_their_writer():
    gtids = "AAAA-1:1-5:7:blue:1-2,\nbbbb-2:9"
    assert foreign(gtids, "aaaa-1") == "bbbb-2:9"
    assert foreign(gtids, "bbbb-2") == "AAAA-1:1-5:7:blue:1-2"
    assert not foreign("", "aaaa-1")


bits = st.booleans()
members = st.builds(
    Member,
    name=st.just("mysql-2"),
    instance_id=st.sampled_from(["i-mysql-1", "i-mysql-2"]),
    address=st.just("10.0.0.2"),
    uuid=st.sampled_from(["u1", "u2"]),
    server_id=st.just(2),
    version=st.just((9, 7, 4)),
    read_only=bits,
    super_read_only=bits,
    offline=bits,
    term=st.sampled_from([None, 2, 3]),
    term_uuid=st.sampled_from([None, "u1", "u2"]),
    replication=st.one_of(
        st.none(),
        st.builds(
            Replication,
            host=st.sampled_from(["10.0.0.1", "10.0.0.3"]),
            io=st.sampled_from(["ON", "OFF", "CONNECTING"]),
            applier=st.sampled_from(["ON", "OFF"]),
            error=st.sampled_from(["", "duplicate key"]),
        ),
    ),
    semi_sync=st.builds(SemiSync, source=bits, replica=bits, acknowledging=bits),
)
states = st.builds(
    State,
    record=st.just(Record(3, "i-mysql-1", "u1")),
    claim=st.one_of(
        st.none(),
        st.builds(
            Claim,
            holder=st.sampled_from(["", "mysql-2", "mysql-3"]),
            fence=st.just(7),
            expires_at=st.sampled_from([NOW - 1, NOW + 1]),
        ),
    ),
    paused=st.sampled_from([None, Pause("ann", "disks", NOW + 1)]),
    barred=st.sampled_from([{}, {"i-mysql-2": "old"}]),
)
peers = st.builds(
    Peers,
    primary=st.sampled_from([None, SERVING, RESTARTED]),
    surplus=st.sampled_from(["", "u1:9", "u2:9"]),
    lacks=st.sampled_from(["", "u2:9"]),
    stranded=bits,
    acknowledgers=st.sampled_from([(), ("mysql-3",)]),
)


@given(members, states, peers)
def test_nothing_opens_that_somebody_else_or_a_pause_forbids(me, state, seen):
    advice = ruled(me, state, seen)
    claim = state.claim
    foreign = claim and claim.holder not in {"", me.name} and claim.expires_at >= NOW
    if foreign or state.paused:
        assert advice.do in {*CLOSING, Do.WAIT}
    assert advice.needs_lease == (advice.do in OPENING or advice.do is Do.QUARANTINE)


@given(members, states, peers)
def test_what_only_one_member_holds_neither_spreads_nor_goes(me, state, seen):
    advice = ruled(me, state, seen)
    is_named = state.record.instance_id == me.instance_id
    if not is_named and seen.surplus.startswith("u2"):
        assert advice.do not in OPENING
    if advice.do is Do.GRANT:
        assert is_named
        assert me.uuid == state.record.uuid
        assert not seen.lacks or (me.semi_sync.source and seen.lacks.startswith(me.uuid))
        assert me.replication is None


@given(members, states, peers)
def test_who_could_be_written_to_without_the_record_is_closed(me, state, seen):
    advice = ruled(me, state, seen)
    if me.instance_id != state.record.instance_id and not (me.read_only and me.super_read_only):
        assert advice.do is Do.CLOSE
    if advice.do in OPENING and me.instance_id in state.barred and advice.do is not Do.GRANT:
        assert advice.unbar == (me.instance_id != state.record.instance_id)

"""No acknowledged write is lost and no two servers acknowledge, whatever happens in between.

The rules drive a simulated cluster in which verdicts may always be wrong, anybody may stop, die or
sleep between two statements, and answers get lost. ``mysql_world`` raises when a write is told OK
that a deposed server took, when a GTID or a term is given out twice, or when an applier would wait
for acknowledgements; ``mysql_chaos`` checks after every step that nothing told is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mysql_actors import Actor, Failover, QuitError
from mysql_chaos import Chaos
from mysql_keeper import Complete, Keeper
from mysql_world import LEASE, LostError, StaleError

NUMBERS = st.integers(0, (1 << 20) - 1)
TAPES = st.lists(NUMBERS, min_size=50, max_size=500)
TAKEOVER_STEPS = 70


def flow(chaos: Chaos, *, writers: tuple[str, ...] = ()) -> None:
    """Clients write, streams bring, replicas acknowledge and apply: a moment of normal life."""
    for name, event in list(chaos.events()):
        if name.removeprefix("a client writes on ") in writers:
            event()
    for _ in range(3):
        for name, event in list(chaos.events()):
            if name.endswith(("receives", "applies", "stream")):
                event()
        while chaos.world.acks:
            chaos.world.deliver(0)
    chaos.check()


def quiet(size: int = 3, mutant: str = "", wait_for: int = 1) -> Chaos:
    """A world without watchers, in which only what a test starts goes on."""
    chaos = Chaos(size, wait_for, mutant=mutant)
    chaos.running.clear()
    flow(chaos, writers=("mysql-1",))
    return chaos


def run(chaos: Chaos, actor: Actor, *, until: Callable[[], bool] = lambda: False) -> bool:
    """Let one actor go on while life goes on; whether ``until`` came true before it ended."""
    steps = actor.steps()
    chaos.running.append((actor, steps))
    for _ in range(400):
        if until():
            return True
        if not any(a is actor for a, _ in chaos.running):
            return False
        for index in reversed(range(len(chaos.running))):
            chaos._go_on(index)
        flow(chaos)
    return False


def keep(chaos: Chaos, *names: str) -> None:
    """These watchers do what their members need, for a while."""
    keepers = [Keeper(chaos.world, name, chaos.mutant) for name in names]
    chaos.running += [(keeper, keeper.steps()) for keeper in keepers]
    for _ in range(60):
        for index in reversed(range(len(chaos.running))):
            chaos._go_on(index)
        flow(chaos)
    chaos.running = [(a, s) for a, s in chaos.running if a not in keepers]


def in_order(chaos: Chaos) -> None:
    """After all faults: the primary of the record serves, and its followers are whole."""
    world = chaos.world
    out = {name for name in world.servers if f"i-{name}" in world.state.barred}
    if len(world.servers) - 1 - len(out) < world.wait_for:
        return
    serving = [s.name for s in world.servers.values() if not s.read_only]
    assert serving == [world.primary.name]
    before = len(world.told)
    flow(chaos, writers=tuple(serving))
    assert len(world.told) > before, "writes must go on"
    for name, server in world.servers.items():
        if name not in {*out, *serving}:
            assert server.executed == world.primary.executed


@pytest.mark.parametrize(("members", "wait_for"), [(3, 1), (5, 1), (5, 2)])
@settings(max_examples=40, deadline=None)
@given(tape=TAPES)
def test_nothing_acknowledged_is_lost_whatever_happens_in_between(members, wait_for, tape):
    chaos = Chaos(members, wait_for)
    chaos.play(tape)
    chaos.heal()
    in_order(chaos)


@settings(max_examples=30, deadline=None)
@given(TAPES)
def test_sessions_that_are_killed_by_the_next_failover_are_enough_too(tape):
    Chaos(mutant="kill").play(tape)


@settings(max_examples=40, deadline=None)
@given(TAPES)
def test_even_where_loss_is_accepted_no_two_servers_acknowledge(tape):
    Chaos(lossy=True).play(tape)


FAULTS: dict[str, Callable[[Chaos], object]] = {
    "nothing else": lambda _: None,
    "the candidate crashes": lambda c: c.world.crash(c.world.servers["mysql-2"]),
    "the other replica crashes": lambda c: c.world.crash(c.world.servers["mysql-3"]),
    "the other replica is cut off": lambda c: c._isolate("mysql-3"),
    "the candidate freezes": lambda c: setattr(c.world.servers["mysql-2"], "is_frozen", True),
    "the old primary returns": lambda c: c._boot("mysql-1"),
    "an answer gets lost": lambda c: c.world.mute.add("mysql-3"),
    "the API goes away": lambda c: c.world.no_api.add("mysql-3"),
    "EC2 stops the old primary": lambda c: c._stop("mysql-1"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dies", [True, False], ids=["and it is killed", "and it goes on"])
def test_a_failover_survives_faults_at_every_step(fault, dies):
    """Whoever fails over from mysql-3 is there, and then everybody mends what is left."""
    for step in range(TAKEOVER_STEPS):
        chaos = quiet()
        world = chaos.world
        world.write(world.servers["mysql-1"])
        world.receive("mysql-3")
        world.crash(world.servers["mysql-1"])
        failover = Failover(world, "mysql-3")
        steps = failover.steps()
        ended = False
        for _ in range(step):
            try:
                next(steps)
            except (StopIteration, LostError, StaleError, QuitError):
                ended = True
                break
            flow(chaos)
        FAULTS[fault](chaos)
        if not dies and not ended:
            chaos.running.append((failover, steps))
        for name in world.servers:
            chaos._start(Keeper(world, name))
        chaos.heal(rounds=120)
        in_order(chaos)
        assert world.state.record.term <= 2


@pytest.mark.parametrize("means", ["", "kill"], ids=["the server says no", "its session is gone"])
def test_a_proposer_that_slept_through_its_lease_changes_nothing_when_it_wakes(means):
    asleep_before_it_turns_a_member(means)


def test_the_world_would_notice_a_proposer_that_nothing_stops():
    with pytest.raises(AssertionError, match="not its to take"):
        asleep_before_it_turns_a_member("nothing stops a sleeper")


def asleep_before_it_turns_a_member(mutant: str) -> None:
    """Terms 2 and 3 begin while the proposer of term 2 is about to turn mysql-3 to mysql-2."""
    chaos = quiet(mutant=mutant)
    world, three = chaos.world, chaos.world.servers["mysql-3"]
    world.crash(world.servers["mysql-1"])
    sleeper = one_step_before(chaos, lambda: three.source == "mysql-2")
    world.now += LEASE + 1
    run(chaos, Complete(world, "mysql-2", mutant))
    world.servers["mysql-1"].is_up = True
    keep(chaos, "mysql-1")
    assert world.servers["mysql-1"].source == "mysql-2"
    flow(chaos, writers=("mysql-2",))
    world.cut.add(frozenset({"mysql-1", "mysql-2"}))
    run(chaos, Failover(world, "mysql-1", mutant))
    assert world.state.record.term == 3
    for name in world.state.barred:
        assert name == "i-mysql-2"
    with suppress(StaleError, StopIteration):
        for _ in range(5):
            next(sleeper)
            flow(chaos, writers=("mysql-2",))
    assert three.source == "mysql-1"


def one_step_before(chaos: Chaos, done: Callable[[], bool]):
    """A failover from mysql-3 that is stopped right before the statement that makes ``done``."""
    world = chaos.world

    def steps_of(other: Chaos) -> int:
        failover = Failover(other.world, "mysql-3", chaos.mutant)
        steps = failover.steps()
        for count in range(200):
            next(steps)
            flow(other)
            if other.world.servers["mysql-3"].source == "mysql-2":
                return count
        raise AssertionError("it never did")

    rehearsal = quiet(mutant=chaos.mutant)
    rehearsal.world.crash(rehearsal.world.servers["mysql-1"])
    count = steps_of(rehearsal)
    sleeper = Failover(world, "mysql-3", chaos.mutant).steps()
    for _ in range(count):
        next(sleeper)
        flow(chaos)
    assert not done()
    return sleeper


def only_the_returned_member_acknowledges(mutant: str) -> set[object]:
    """mysql-1 is back and alone acknowledges a write; then it and the new primary are gone."""
    chaos = quiet(5, mutant)
    world = chaos.world
    world.crash(world.servers["mysql-1"])
    run(chaos, Failover(world, "mysql-3", mutant))
    world.servers["mysql-1"].is_up = True
    keep(chaos, "mysql-1")
    flow(chaos)
    new = world.primary
    gtid = world.write(new)
    world.receive("mysql-1")
    while world.acks:
        world.deliver(0)
    assert gtid in world.told
    chaos._isolate("mysql-1")
    world.crash(new)
    world.now += LEASE + 1
    run(chaos, Failover(world, "mysql-4", mutant))
    return {world.state.record.term}


def test_a_member_that_was_let_in_again_counts_as_one_that_may_have_acknowledged():
    assert only_the_returned_member_acknowledges("") == {2}


def test_the_world_would_notice_a_member_that_acknowledges_before_it_is_let_in():
    with pytest.raises(AssertionError, match="lost"):
        only_the_returned_member_acknowledges("acknowledges while barred")


def two_primaries_are_lost_in_a_row(mutant: str) -> int:
    """mysql-2 alone has acknowledged a write, takes over, and is gone before others have it."""
    chaos = quiet(5, mutant)
    world = chaos.world
    gtid = world.write(world.servers["mysql-1"])
    world.receive("mysql-2")
    while world.acks:
        world.deliver(0)
    assert gtid in world.told
    world.crash(world.servers["mysql-1"])
    for _ in Failover(world, "mysql-3", mutant).steps():
        for name in world.servers:
            world.connect(name)
        if world.state.record.term == 2 and not world.servers["mysql-2"].read_only:
            break
        for server in world.servers.values():
            while server.applier and server.unapplied:
                world.apply(server)
    world.crash(world.servers["mysql-2"])
    world.now += LEASE + 1
    run(chaos, Failover(world, "mysql-4", mutant))
    return world.state.record.term


def test_a_primary_that_is_lost_before_others_caught_up_is_not_replaced_by_one_of_them():
    assert two_primaries_are_lost_in_a_row("") == 2


def test_the_world_would_notice_a_successor_that_lacks_what_earlier_terms_acknowledged():
    with pytest.raises(AssertionError, match="lost"):
        two_primaries_are_lost_in_a_row("the baseline is forgotten")


def test_a_primary_that_answers_is_closed_without_an_ok_that_is_lost():
    assert not lost_while_closing("")


def test_the_world_would_notice_the_wrong_order_of_closing():
    assert lost_while_closing("source off first")


def lost_while_closing(mutant: str) -> bool:
    """A commit waits on a primary that is cut from its replicas, and is then closed."""
    chaos = quiet(mutant=mutant)
    world = chaos.world
    for name in ("mysql-2", "mysql-3"):
        world.cut.add(frozenset({"mysql-1", name}))
    waiting = world.write(world.servers["mysql-1"])
    actor = Keeper(world, "mysql-1", mutant)
    for _ in actor.close("mysql-1"):
        pass
    return waiting in world.told


@pytest.mark.parametrize("mutant", ["positions first", "revokes one only"])
def test_the_world_would_notice_positions_that_can_still_grow(mutant):
    """A write is acknowledged between two statements of the failover."""
    lost = 0
    for step in range(30):
        chaos = quiet(mutant=mutant)
        world = chaos.world
        steps = Failover(world, "mysql-3", mutant).steps()
        try:
            for number in range(TAKEOVER_STEPS):
                next(steps)
                if number == step:
                    world.write(world.servers["mysql-1"])
                    if world.can_receive("mysql-3"):
                        world.receive("mysql-3")
                    while world.acks:
                        world.deliver(0)
                chaos.check()
        except AssertionError:
            lost += 1
        except (StopIteration, LostError, StaleError, QuitError):
            continue
    assert lost

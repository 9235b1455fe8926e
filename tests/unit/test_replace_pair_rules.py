"""Replacing the load balancers: one serves and another one could, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import replace_pair as rules
from flotilla.rules.replace_pair import Balancer, Configure, Done, End, Launch, Move, Rename

OLD, NEW = "ami-old", "ami-new"
ZONES = ("a", "b", "c")
ONE = Balancer("lb-1", "i-1", "a", OLD, fit=True, owner=True)
TWO = Balancer("lb-2", "i-2", "b", OLD, fit=True, owner=False)
THREE = Balancer("lb-3", "i-3", "b", NEW, fit=False, owner=False)


def step(*hosts: Balancer) -> rules.Step:
    return rules.step(hosts, NEW, ZONES)


def test_the_passive_one_gets_its_replacement_first_in_its_own_zone():
    assert step(ONE, TWO) == Launch("lb-3", "b")


def test_it_is_configured_before_the_old_one_goes():
    assert step(ONE, TWO, THREE) == Configure((THREE,))
    assert step(ONE, TWO, replace(THREE, fit=True)) == End(TWO)


def test_then_it_takes_the_name_and_the_address():
    assert step(ONE, replace(THREE, fit=True)) == Rename(replace(THREE, fit=True), "lb-2")
    named = replace(THREE, fit=True, name="lb-2")
    assert step(ONE, named) == Move(ONE)


def test_then_the_other_one_is_passive_and_goes_the_same_way():
    two = Balancer("lb-2", "i-3", "b", NEW, fit=True, owner=True)
    one = replace(ONE, owner=False)
    assert step(one, two) == Launch("lb-3", "a")
    three = Balancer("lb-3", "i-4", "a", NEW, fit=True, owner=False)
    assert step(one, two, three) == End(one)
    assert step(two, three) == Rename(three, "lb-1")
    assert step(two, replace(three, name="lb-1")) == Done()


def test_a_new_one_that_never_gets_fit_is_ended_when_the_old_image_is_wanted_again():
    assert rules.step([ONE, TWO, THREE], OLD, ZONES) == End(THREE)


def test_an_exchange_begins_with_two_that_could_serve_and_one_owner():
    assert rules.faults([ONE, TWO]) == []
    assert "lb-2 could not serve" in rules.faults([ONE, replace(TWO, fit=False)])[0]
    assert "no load balancer has" in rules.faults([replace(ONE, owner=False), TWO])[0]
    assert "there are 1 (lb-1)" in rules.faults([ONE])[0]


@dataclass
class World:
    """Two load balancers on which steps are carried out, and on which things happen."""

    hosts: list[Balancer] = field(default_factory=lambda: [ONE, TWO])
    image: str = NEW
    number: int = 10
    moves: int = 0

    def carry_out(self, then: rules.Step) -> None:
        if isinstance(then, Launch):
            assert then.name not in {one.name for one in self.hosts}
            assert len(self.hosts) <= 2
            self.number += 1
            ident = f"i-{self.number}"
            fresh = Balancer(then.name, ident, then.zone, self.image, fit=False, owner=False)
            self.hosts.append(fresh)
        elif isinstance(then, Configure):
            self.hosts = [replace(one, fit=True) for one in self.hosts]
        elif isinstance(then, Move):
            self.moves += 1
            taker = next(h for h in self.hosts if h.fit and h.image_id == self.image)
            self.hosts = [replace(one, owner=one == taker) for one in self.hosts]
        elif isinstance(then, End):
            assert not then.host.owner
            self.hosts.remove(then.host)
            assert sum(one.fit for one in self.hosts) >= 2
        elif isinstance(then, Rename):
            assert then.name not in {one.name for one in self.hosts}
            place = self.hosts.index(then.host)
            self.hosts[place] = replace(then.host, name=then.name)

    def happen(self, what: str) -> None:
        if what == "turn back":
            self.image = OLD if self.image == NEW else NEW
        elif what == "unfit":
            self.hosts[-1] = replace(self.hosts[-1], fit=False)
        elif what == "address moves" and len(self.hosts) > 1:
            at = next(n for n, one in enumerate(self.hosts) if one.owner)
            other = (at + 1) % len(self.hosts)
            self.hosts = [replace(one, owner=n == other) for n, one in enumerate(self.hosts)]

    def finish(self) -> None:
        for _ in range(60):
            then = rules.step(self.hosts, self.image, ZONES)
            if isinstance(then, Done):
                return
            self.carry_out(then)
        pytest.fail(f"no end: {self}")


EVENTS = st.sampled_from(["turn back", "unfit", "address moves", "nothing", "nothing"])


def test_left_alone_it_moves_the_address_once():
    world = World()
    world.finish()
    assert world.moves == 1
    assert {(one.name, one.zone) for one in world.hosts} == {("lb-1", "a"), ("lb-2", "b")}


@given(st.lists(EVENTS, max_size=20))
def test_whatever_happens_it_ends_with_two_of_one_image_under_their_own_names(events):
    world = World()
    for event in events:
        world.happen(event)
        world.carry_out(rules.step(world.hosts, world.image, ZONES))
    world.finish()
    assert {one.image_id for one in world.hosts} == {world.image}
    assert {(one.name, one.zone) for one in world.hosts} == {("lb-1", "a"), ("lb-2", "b")}
    assert sum(one.owner for one in world.hosts) == 1

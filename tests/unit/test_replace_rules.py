"""Replacing hosts by others of another image: what is done next, whatever happens meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import replace as rules
from flotilla.rules.images import Image
from flotilla.rules.replace import Await, Done, Goal, Host, Launch, Retire, Watch
from flotilla.rules.rotation import Server

OLD, NEW = "ami-old", "ami-new"
ZONES = ("a", "b", "c")


def host(number: int, image: str = OLD, state: rules.State = "serving") -> Host:
    return Host(f"app-{number}", f"i-{number}", ZONES[number % 3], image, state)


def goal(desired: int = 3, *, most: int = 2, proven: tuple[str, ...] = ()) -> Goal:
    return Goal(NEW, desired, most, frozenset(proven))


OLDS = [host(1), host(2), host(3)]


def test_the_first_new_host_comes_alone():
    assert rules.step(OLDS, goal()) == Launch(1)


def test_it_is_awaited_watched_and_only_then_an_old_host_goes():
    coming = host(4, NEW, "coming")
    assert rules.step([*OLDS, coming], goal()) == Await((coming,))
    serving = replace(coming, state="serving")
    assert rules.step([*OLDS, serving], goal()) == Watch((serving,))
    then = rules.step([*OLDS, serving], goal(proven=("i-4",)))
    assert isinstance(then, Retire)
    assert [one.image_id for one in then.hosts] == [OLD]


def test_after_the_first_as_many_come_as_may():
    hosts = [host(1), host(2), host(4, NEW)]
    assert rules.step(hosts, goal(proven=("i-4",))) == Launch(2)


def test_what_auto_scaling_was_told_is_waited_for_and_not_asked_twice():
    assert rules.step(OLDS, goal(), launching=1) == Await(())


def test_an_old_host_that_serves_nothing_goes_first_while_the_others_are_enough():
    out = host(4, OLD, "out")
    assert rules.step([*OLDS, out], goal()) == Retire((out,))


def test_hosts_that_are_all_down_at_once_are_not_thrown_away():
    down = [replace(one, state="coming") for one in OLDS]
    assert rules.step(down, goal()) == Launch(1)


def test_going_back_is_the_same_with_the_images_exchanged():
    back = Goal(OLD, 3, 2, frozenset({"i-1", "i-2", "i-3"}))
    coming = host(4, NEW, "coming")
    assert rules.step([*OLDS, coming], back) == Retire((coming,))
    assert rules.step([host(1), host(2), host(4, NEW)], back) == Launch(1)


def test_all_new_and_none_too_many_is_the_end():
    news = [host(n, NEW) for n in (4, 5, 6)]
    all_proven = goal(proven=("i-4", "i-5", "i-6", "i-7"))
    assert rules.step(news, all_proven) == Done()
    assert isinstance(rules.step([*news, host(7, NEW)], all_proven), Retire)


def test_the_fullest_zone_gives_first():
    hosts = [host(1), host(2), host(3), host(4, NEW)]  # 1 and 4 are in one zone
    then = rules.step(hosts, goal(proven=("i-4",)))
    assert then == Retire((hosts[0],))


@dataclass
class World:
    """A tier on which steps are carried out, and on which things happen."""

    hosts: list[Host]
    goal: Goal
    launching: int = 0
    number: int = 100
    least: list[int] = field(default_factory=list)

    @property
    def serving(self) -> int:
        return sum(one.state == "serving" for one in self.hosts)

    def carry_out(self, then: rules.Step) -> None:
        if isinstance(then, Launch):
            self.launching += then.count
        elif isinstance(then, Watch):
            names = {one.instance_id for one in then.hosts}
            self.goal = replace(self.goal, proven=self.goal.proven | names)
        elif isinstance(then, Retire):
            before = self.serving
            self.hosts = [one for one in self.hosts if one not in then.hosts]
            assert self.serving >= min(before, self.goal.desired), "a step took capacity"
        if isinstance(then, Launch):
            assert len(self.hosts) + self.launching <= self.goal.desired + self.goal.most

    def happen(self, what: str) -> None:
        if what == "launched" and self.launching:
            self.launching -= 1
            self.number += 1
            fresh = host(self.number, self.goal.image_id, "coming")
            self.hosts.append(fresh)
        elif what == "serves":
            self.change("coming", "serving")
        elif what == "is down":
            self.change("serving", "coming")
        elif what == "dies" and self.hosts:  # Auto Scaling replaces it by the version of now
            self.hosts.pop(0)
            self.launching += 1
        elif what == "drained by somebody":
            self.change("serving", "out")
        elif what == "turn back":
            image = OLD if self.goal.image_id == NEW else NEW
            known = frozenset(h.instance_id for h in self.hosts if h.image_id == image)
            self.goal = replace(self.goal, image_id=image, proven=known)

    def change(self, before: rules.State, after: rules.State) -> None:
        for place, one in enumerate(self.hosts):
            if one.state == before:
                self.hosts[place] = replace(one, state=after)
                return


EVENTS = ["launched", "serves", "is down", "dies", "drained by somebody", "turn back", "nothing"]


@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.lists(st.sampled_from(EVENTS), max_size=30),
)
def test_capacity_is_never_taken_and_the_end_is_one_image(desired, most, events):
    world = World([host(n) for n in range(1, desired + 1)], goal(desired, most=most))
    for event in events:
        world.happen(event)
        world.carry_out(rules.step(world.hosts, world.goal, launching=world.launching))
    for _ in range(200):  # from now on all goes well
        world.happen("launched")
        world.happen("serves")
        then = rules.step(world.hosts, world.goal, launching=world.launching)
        if isinstance(then, Done):
            break
        world.carry_out(then)
    else:
        pytest.fail(f"no end: {world}")
    assert {one.image_id for one in world.hosts} == {world.goal.image_id}
    assert (len(world.hosts), world.serving) == (desired, desired)


def server(status: str) -> Server:
    return Server("app-1", status, "L7OK", 0, 0)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("UP", "UP"), "serving"),
        (("UP", "DOWN"), "coming"),
        (("UP",), "coming"),  # one load balancer does not know it
        ((), "coming"),
        (("UP", "MAINT"), "out"),
        (("DRAIN", "DRAIN"), "out"),
    ],
)
def test_a_host_serves_when_every_load_balancer_says_so(statuses, expected):
    views = {f"lb-{n}": server(status) for n, status in enumerate(statuses, 1)}
    assert rules.state(views, ["lb-1", "lb-2"]) == expected


def image(**more: object) -> Image:
    made = Image(
        image_id=NEW,
        name="flotilla-app-1",
        role="app",
        state="available",
        status="tested",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        content_hash="c",
        source_image="ami-0",
        build_id="b",
        git_commit="1234",
        git_dirty=False,
        root_device="/dev/xvda",
    )
    return replace(made, **more)


def test_a_tested_image_of_known_origin_may_be_launched():
    assert rules.why_not_image(image(), "app") is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"status": "baked"}, "Status 'baked'"),
        ({"status": ""}, "Status 'missing'"),
        ({"state": "pending"}, "state is pending"),
        ({"role": "lb"}, "for lb, not for app"),
        ({"content_hash": ""}, "no tag ContentHash"),
        ({"git_commit": "", "build_id": ""}, "no tag BuildId, GitCommit"),
    ],
)
def test_another_image_is_refused_with_the_reason(more, said):
    assert said in str(rules.why_not_image(image(**more), "app"))


def test_a_tier_below_its_size_is_not_begun_with():
    balancers = {"lb-1": ["app-1", "app-2", "app-3"], "lb-2": ["app-1", "app-2", "app-3"]}
    assert rules.faults(OLDS, balancers, 3) == []
    down = [*OLDS[:2], replace(OLDS[2], state="coming")]
    assert "2 of 3 hosts serve" in rules.faults(down, balancers, 3)[0]
    assert "app-9" in rules.faults(OLDS, {"lb-1": ["app-1", "app-9"]}, 3)[0]
    assert "no running load balancer" in rules.faults(OLDS, {}, 3)[0]


def test_what_most_old_hosts_have_is_what_is_gone_back_to():
    hosts = [host(1), host(2, "ami-odd"), host(3), host(4, NEW)]
    assert rules.previous(hosts, NEW) == OLD
    assert rules.previous([host(4, NEW)], NEW) == ""


BEGIN = {
    "event": "begin",
    "at": "2026-01-01T00:00:00",
    "by": "me@here:1",
    "largest": 6,
    "plan": {
        "role": "app",
        "image_id": NEW,
        "previous_image": OLD,
        "previous_version": "3",
        "desired": 3,
    },
}


def test_a_journal_without_an_end_says_what_to_go_on_with():
    lines = [
        BEGIN,
        {"event": "proven", "instances": ["i-4"]},
        {"event": "going back", "why": "it fails requests"},
    ]
    found = rules.past("x", lines)
    assert found
    assert (found.image_id, found.desired, found.largest) == (NEW, 3, 6)
    assert found.proven == {"i-4"}
    assert found.going_back == "it fails requests"


@pytest.mark.parametrize("lines", [[], [BEGIN, {"event": "end"}], [{"event": "step"}]])
def test_a_journal_that_ended_or_never_began_is_not_gone_on_with(lines):
    assert rules.past("x", lines) is None

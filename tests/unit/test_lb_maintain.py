"""The load balancers worked on one after the other: in which order, and where that stops."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.errors import HostFailed, Refused
from flotilla.lb import operate_maintain
from flotilla.lb.maintain import Maintenance
from flotilla.rules import lb_maintain as rules
from flotilla.rules.replace_pair import Balancer

SAID = """\
Inst libssl3t64 [3.5.1-1] (3.5.4-1 Debian-Security:13/stable-security [amd64]) []
Inst haproxy [3.0.11-1] (3.0.12-1 Debian:13.2/stable [amd64])
stale keepalived /usr/lib/x86_64-linux-gnu/libcrypto.so.3
stale keepalived /usr/lib/x86_64-linux-gnu/libcrypto.so.3
""".splitlines()

HOSTS = st.lists(
    st.builds(
        Balancer,
        name=st.sampled_from(["lb-1", "lb-2", "lb-3"]),
        instance_id=st.just("i"),
        zone=st.just("a"),
        image_id=st.just("ami"),
        fit=st.booleans(),
        owner=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda one: one.name,
)


def balancer(name: str, *, fit: bool = True, owner: bool = False) -> Balancer:
    return Balancer(name, f"i-{name}", "a", "ami", fit=fit, owner=owner)


def test_what_apt_would_do_and_what_runs_on_replaced_files_is_a_need() -> None:
    need = rules.need(SAID)
    assert need == rules.Need(
        (
            "libssl3t64 3.5.1-1 -> 3.5.4-1",
            "haproxy 3.0.11-1 -> 3.0.12-1",
            "keepalived runs /usr/lib/x86_64-linux-gnu/libcrypto.so.3, which was replaced",
        ),
        upgrades=True,
    )


def test_a_host_that_needs_nothing_is_left_alone_unless_a_restart_is_asked_for() -> None:
    assert rules.need([]) is None
    assert rules.need([], anyway=True) == rules.Need(("a restart was asked for",), upgrades=False)
    assert rules.need(SAID[2:], anyway=True) == rules.need(SAID[2:])


@given(hosts=HOSTS, left=st.sets(st.sampled_from(["lb-1", "lb-2", "lb-3"]), min_size=1))
def test_nobody_is_taken_away_unless_another_one_could_serve(
    hosts: list[Balancer], left: set[str]
) -> None:
    if rules.disorder(hosts):
        with pytest.raises(ValueError):
            rules.turn(hosts, left)
        return
    assert sum(host.owner for host in hosts) == 1
    if not left & {host.name for host in hosts}:
        return
    turn = rules.turn(hosts, left)
    assert turn.host.name in left
    assert turn.gives_away is turn.host.owner
    assert any(host.fit for host in hosts if host != turn.host)
    others = [host for host in hosts if host.name in left and host != turn.host]
    assert not (turn.host.owner and others), "who has the address comes last"


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        ([], "there is none"),
        ([balancer("lb-1", owner=True)], "there is lb-1"),
        ([balancer("lb-1"), balancer("lb-2")], "none of them"),
        ([balancer("lb-1", owner=True), balancer("lb-2", owner=True)], "lb-1 and lb-2"),
        ([balancer("lb-1", owner=True), balancer("lb-2", fit=False)], "lb-2 could not serve"),
    ],
)
def test_a_pair_that_is_not_in_order_is_told_why(hosts: list[Balancer], says: str) -> None:
    assert says in "; ".join(rules.disorder(hosts))


def test_the_plan_names_the_holder_last_and_every_reason() -> None:
    hosts = [balancer("lb-1", owner=True), balancer("lb-2")]
    lines = list(rules.steps(hosts, {"lb-1": ["a"], "lb-2": ["b"]}))
    assert [line.partition(":")[0] for line in lines] == ["lb-2", "  b", "lb-1", "  a"]
    assert "move the address away" in lines[2]


@dataclass
class Pair:
    """Two load balancers; the address is with lb-1."""

    hosts: list[Balancer] = field(
        default_factory=lambda: [balancer("lb-1", owner=True), balancer("lb-2")]
    )
    calls: list[str] = field(default_factory=list)
    # Whoever is in it does not come back from the work on it.
    lost: set[str] = field(default_factory=set)
    # After the work on this one the address is with it, as when the other one failed meanwhile.
    taken_by: str = ""
    returns: bool = False

    def look(self) -> list[Balancer]:
        return list(self.hosts)

    def move(self, source: Balancer) -> None:
        assert source.owner
        self.calls.append(f"move {source.name}")
        if not self.returns:
            self._given(next(one.name for one in self.hosts if one.fit and one != source))

    def work(self, name: str) -> None:
        assert [one.name for one in self.hosts if one.owner] != [name], "clients are on it"
        self.calls.append(f"work {name}")
        if name in self.lost:
            self.hosts = [replace(o, fit=o.fit and o.name != name) for o in self.hosts]
        if name == self.taken_by:
            self._given(name)

    def _given(self, name: str) -> None:
        self.hosts = [replace(one, owner=one.name == name) for one in self.hosts]


def run(pair: Pair, *names: str) -> tuple[str, Maintenance]:
    """A pass in which time goes by with every sleep."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    work = Maintenance(
        pair,
        nullcontext,
        pair.work,
        guard=lambda: None,
        sleep=sleep,
        clock=lambda: now[0],
    )
    return work.run(names or ("lb-1", "lb-2")), work


def test_the_one_with_the_address_is_worked_on_after_it_has_given_it_away() -> None:
    pair = Pair()
    owner, work = run(pair)
    assert pair.calls == ["work lb-2", "move lb-1", "work lb-1"]
    assert (owner, work.moved) == ("lb-2", ["lb-1"])


def test_the_address_stays_where_only_the_other_one_needs_work() -> None:
    pair = Pair()
    assert run(pair, "lb-2")[0] == "lb-1"
    assert pair.calls == ["work lb-2"]


def test_an_address_that_moved_by_itself_meanwhile_is_not_moved_again() -> None:
    pair = Pair(taken_by="lb-2")
    owner, work = run(pair)
    assert pair.calls == ["work lb-2", "work lb-1"]
    assert (owner, work.moved) == ("lb-2", [])


def test_one_that_does_not_come_back_is_named_and_the_other_one_is_left_alone() -> None:
    pair = Pair(lost={"lb-2"})
    with pytest.raises(HostFailed, match="lb-2 could not serve 90 s after"):
        run(pair)
    assert pair.calls == ["work lb-2"]


def test_a_pair_out_of_order_is_refused_before_anything_is_done() -> None:
    pair = Pair(hosts=[balancer("lb-1", owner=True), balancer("lb-2", fit=False)])
    with pytest.raises(Refused, match="Nothing was changed"):
        run(pair)
    assert pair.calls == []


def test_disorder_in_the_middle_is_no_refusal_for_something_was_done() -> None:
    pair = Pair(returns=True)
    with pytest.raises(HostFailed, match="the address came back to lb-1"):
        run(pair)
    assert pair.calls == ["work lb-2", "move lb-1"]


def test_what_is_asked_on_a_host_is_a_script_that_its_shell_can_read() -> None:
    for text in (operate_maintain.survey(fresh=True), operate_maintain.UPGRADE):
        done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

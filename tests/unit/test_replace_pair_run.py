"""The load balancers exchanged from the first step to the last, or taken back, or killed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flotilla.deploy.journal import Journal, read
from flotilla.errors import FlotillaError, HostFailed
from flotilla.replace.pair import Told, is_known
from flotilla.replace.pair_run import PairExchange
from flotilla.rules import replace as rules
from flotilla.rules.replace import Plan
from flotilla.rules.replace_pair import Balancer
from flotilla.snapshot import Host

OLD, NEW = "ami-old", "ami-new"
ZONES = ("a", "b", "c")
PLAN = Plan("lb", NEW, "flotilla-lb-2", OLD, "1", desired=2, most=1, old=("lb-1", "lb-2"))


class Killed(BaseException):
    """The operator's process is gone."""


@dataclass
class Pair:
    """Two load balancers; the address is with lb-1."""

    hosts: list[Balancer] = field(
        default_factory=lambda: [
            Balancer("lb-1", "i-1", "a", OLD, fit=True, owner=True),
            Balancer("lb-2", "i-2", "b", OLD, fit=True, owner=False),
        ]
    )
    calls: list[str] = field(default_factory=list)
    default: str = OLD
    fewest_fit: int = 9
    never_fit: set[str] = field(default_factory=set)
    breaks: str = ""
    number: int = 2
    cut: int = 999

    def called(self, call: str) -> None:
        if len(self.calls) == self.cut:
            raise Killed
        self.calls.append(call)
        if self.breaks and call.startswith(self.breaks):
            raise FlotillaError(f"{call} failed")

    def look(self) -> list[Balancer]:
        self.fewest_fit = min(self.fewest_fit, sum(one.fit for one in self.hosts))
        assert sum(one.owner for one in self.hosts) == 1
        return list(self.hosts)

    def launch(self, name: str, zone: str, image_id: str) -> None:
        self.called(f"launch {name}")
        self.number += 1
        fresh = Balancer(name, f"i-{self.number}", zone, image_id, fit=False, owner=False)
        self.hosts.append(fresh)

    def configure(self, unfit: Sequence[Balancer]) -> None:
        self.called("configure " + " ".join(one.name for one in unfit))
        for one in unfit:
            if one.image_id in self.never_fit:
                raise HostFailed(f"{one.name} could not serve")
            self.hosts[self.hosts.index(one)] = replace(one, fit=True)

    def move(self, source: Balancer) -> None:
        self.called(f"move {source.name}")
        taker = next(one for one in self.hosts if one.fit and one != source)
        self.hosts = [replace(one, owner=one == taker) for one in self.hosts]

    def end(self, host: Balancer, idle_seconds: float) -> None:  # noqa: ARG002
        self.called(f"end {host.instance_id}")
        assert not host.owner
        self.hosts.remove(host)

    def rename(self, host: Balancer, name: str) -> None:
        self.called(f"rename {name}")
        self.hosts[self.hosts.index(host)] = replace(host, name=name)

    def settle(self) -> None:
        self.called("settle")

    def launch_from(self, image_id: str) -> None:
        self.called(f"launch from {image_id}")
        self.default = image_id


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return begun(tmp_path)


def begun(folder: Path) -> Journal:
    made = Journal(folder / "one.jsonl", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    made.write("begin", by="me", plan=PLAN.as_dict(), largest=0)
    return made


def exchange(
    pair: Pair, journal: Journal, *, stopping: Callable[[], str] = lambda: "", back: str = ""
) -> PairExchange:
    return PairExchange(
        pair,
        PLAN,
        ZONES,
        journal,
        idle_seconds=1,
        said=lambda _: None,
        stopping=stopping,
        going_back=back,
    )


def names(pair: Pair) -> set[tuple[str, str, str]]:
    return {(one.name, one.zone, one.image_id) for one in pair.hosts}


def test_the_passive_one_goes_first_and_the_address_moves_once(journal):
    pair = Pair()
    run = exchange(pair, journal)
    assert run.run() == ("done", "")
    assert names(pair) == {("lb-1", "a", NEW), ("lb-2", "b", NEW)}
    assert [c for c in pair.calls if c.startswith(("end", "move"))] == [
        "end i-2",
        "move lb-1",
        "end i-1",
    ]
    assert pair.calls[-1] == "settle"
    assert pair.default == NEW
    assert (pair.fewest_fit, run.fewest) == (2, 2)


def test_a_new_one_that_never_gets_fit_is_ended_and_the_pair_is_as_before(journal):
    pair = Pair(never_fit={NEW})
    run = exchange(pair, journal)
    assert run.run() == ("rolled back", "")
    assert [one.instance_id for one in pair.hosts] == ["i-1", "i-2"]
    assert not [c for c in pair.calls if c.startswith("move")]
    assert pair.default == OLD
    assert run.blames_image


def test_an_interruption_after_the_address_moved_brings_the_old_image_back(journal):
    pair = Pair()
    moved = lambda: "enough" if "move lb-1" in pair.calls else ""  # noqa: E731
    run = exchange(pair, journal, stopping=moved)
    assert run.run() == ("rolled back", "")
    assert names(pair) == {("lb-1", "a", OLD), ("lb-2", "b", OLD)}
    assert pair.fewest_fit == 2
    assert not run.blames_image


def test_a_move_that_fails_both_ways_stops_with_the_reason(journal):
    pair = Pair(breaks="settle")
    assert exchange(pair, journal).run() == ("stopped", "settle failed")


def calls_of_a_good_run() -> int:
    pair = Pair()
    with tempfile.TemporaryDirectory() as folder:
        exchange(pair, begun(Path(folder))).run()
    return len(pair.calls)


@pytest.mark.parametrize("cut", range(calls_of_a_good_run()))
@pytest.mark.parametrize("back", ["", "asked for"], ids=["on", "back"])
def test_a_run_that_is_killed_at_any_step_is_ended_by_another_one(
    journal: Journal, cut: int, back: str
) -> None:
    pair = Pair(cut=cut)
    with pytest.raises(Killed):
        exchange(pair, journal).run()
    pair.cut = 999
    past = rules.past("one", read(journal.path))
    assert past
    assert past.role == "lb"
    assert exchange(pair, journal, back=back).run()[0] == ("rolled back" if back else "done")
    image = OLD if back else NEW
    assert names(pair) == {("lb-1", "a", image), ("lb-2", "b", image)}
    assert pair.fewest_fit == 2


STATE = '{"vrrp": "BACKUP", "mine": false, "at": 1000.0}'
CONFIGURATION = "  unicast_src_ip 10.77.0.4\n  unicast_peer {\n 10.77.0.20\n }\n"


def test_what_a_load_balancer_says_of_itself():
    told = Told(f"{STATE}\n1010\n{CONFIGURATION}")
    assert told.takes_part
    assert told.knows == {"10.77.0.4", "10.77.0.20"}


@pytest.mark.parametrize(
    "text",
    [
        f"{STATE}\n1100\n{CONFIGURATION}",  # its address service is silent for 100 s
        f"{STATE.replace('BACKUP', 'FAULT')}\n1001\n",
        "{}\n1001\n",  # not configured yet
    ],
)
def test_one_that_could_not_take_over_does_not_take_part(text: str) -> None:
    assert not Told(text).takes_part


def told_of(*addresses: str) -> Told:
    configuration = "\n".join(addresses)
    return Told(f"{STATE}\n1001\n{configuration}\n")


def test_one_is_fit_only_when_those_that_serve_know_it():
    new = Host(
        "lb-3", "i-3", "lb", 3, "a", "running", "10.77.0.30", None, NEW, "t3.small",
        datetime(2026, 1, 1, tzinfo=UTC), {}, None,
    )  # fmt: skip
    serving = told_of("10.77.0.4", "10.77.0.20")
    mine = told_of("10.77.0.4", "10.77.0.30")
    assert not is_known(new, {"lb-1": serving, "lb-3": mine}), "its adverts would be met by none"
    serving = told_of("10.77.0.4", "10.77.0.20", "10.77.0.30")
    assert is_known(new, {"lb-1": serving, "lb-3": mine})
    assert is_known(new, {"lb-1": None, "lb-3": mine}), "one that is silent cannot speak against it"
    assert not is_known(new, {"lb-1": serving, "lb-3": None})

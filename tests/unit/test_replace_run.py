"""An exchange of hosts from its first step to its last, on a tier that behaves or does not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flotilla.deploy.journal import Journal, read
from flotilla.errors import FlotillaError, HostFailed
from flotilla.replace.run import Exchange, Limits, outcome_of
from flotilla.rules import replace as rules
from flotilla.rules.replace import Host, Plan

OLD, NEW = "ami-old", "ami-new"
PLAN = Plan(
    role="app",
    image_id=NEW,
    image_name="flotilla-app-2",
    previous_image=OLD,
    previous_version="1",
    desired=3,
    most=2,
    old=("app-1", "app-2", "app-3"),
)
VERSIONS = {"1": OLD, "2": NEW}


class Killed(BaseException):
    """The operator's process is gone."""


@dataclass
class Machines:
    """A tier: Auto Scaling that launches, hosts that come up, time that passes by sleeping."""

    hosts: list[Host] = field(default_factory=list)
    version: str = "1"
    asked: int = 0
    number: int = 3
    now: float = 0.0
    boot: float = 5.0
    never_serve: set[str] = field(default_factory=set)  # images
    unfit: set[str] = field(default_factory=set)  # images whose hosts fail requests
    born: dict[str, float] = field(default_factory=dict)
    fewest: int = 99
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hosts = [Host(f"app-{n}", f"i-{n}", "abc"[n - 1], OLD, "serving") for n in (1, 2, 3)]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def called(self, call: str) -> None:
        self.calls.append(call)
        serving = sum(one.state == "serving" for one in self.hosts)
        self.fewest = min(self.fewest, serving)

    def look(self) -> tuple[list[Host], int]:
        for place, one in enumerate(self.hosts):
            grown = self.now - self.born.get(one.instance_id, self.now) >= self.boot
            if one.state == "coming" and grown and one.image_id not in self.never_serve:
                self.hosts[place] = replace(one, state="serving")
        launching, self.asked = self.asked, 0
        for _ in range(launching):
            self.number += 1
            one = Host(
                f"app-{self.number}", f"i-{self.number}", "a", VERSIONS[self.version], "coming"
            )
            self.born[one.instance_id] = self.now
            self.hosts.append(one)
        return list(self.hosts), launching

    def launch(self, count: int) -> None:
        self.called(f"launch {count}")
        self.asked += count

    def watch(self, hosts: Sequence[Host], peers: Sequence[Host]) -> None:
        self.called("watch")
        assert peers, "there is somebody to compare with"
        for one in hosts:
            if one.image_id in self.unfit:
                raise HostFailed(f"{one.name} failed 9 of 20 requests")

    def drain(self, host: Host) -> None:
        self.called(f"drain {host.image_id}")
        place = self.hosts.index(host)
        self.hosts[place] = replace(host, state="out")
        serving = sum(one.state == "serving" for one in self.hosts)
        self.fewest = min(self.fewest, serving)

    def end(self, hosts: Collection[Host]) -> None:
        self.called("end")
        gone = {one.instance_id for one in hosts}
        self.hosts = [one for one in self.hosts if one.instance_id not in gone]

    def launch_from(self, version: str) -> None:
        self.called(f"launch from {version}")
        self.version = version

    def why_not_launched(self) -> str:
        return "no capacity in this zone"

    def why_not_serving(self, host: Host) -> str:
        return f"{host.name} is DOWN"


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "one.jsonl", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    made.write("begin", by="me", plan=PLAN.as_dict(), largest=6)
    return made


def exchange(machines: Machines, journal: Journal, **more: Any) -> Exchange:
    return Exchange(
        machines,
        PLAN,
        "2",
        journal,
        Limits(come=60, launch=60),
        said=lambda _: None,
        clock=lambda: machines.now,
        sleep=machines.sleep,
        **more,
    )


def images(machines: Machines) -> list[str]:
    return [one.image_id for one in machines.hosts]


def test_every_host_is_replaced_and_as_many_serve_as_before(machines, journal):
    run = exchange(machines, journal)
    assert run.run() == ("done", "")
    assert images(machines) == [NEW] * 3
    assert machines.fewest == 3
    assert machines.calls[:4] == ["launch from 2", "launch 1", "watch", f"drain {OLD}"]
    assert sorted(run.ended) == ["i-1", "i-2", "i-3"]
    assert len(run.launched) == 3
    done = outcome_of(run, journal, PLAN, ("done", ""), 1.0)
    assert (done.result, done.image) == ("done", "flotilla-app-2")


def test_a_first_host_that_never_serves_is_ended_and_the_old_ones_are_not_touched(
    machines, journal
):
    machines.never_serve = {NEW}
    run = exchange(machines, journal)
    assert run.run() == ("rolled back", "")
    assert [one.instance_id for one in machines.hosts] == ["i-1", "i-2", "i-3"]
    assert f"drain {OLD}" not in machines.calls
    assert machines.version == "1", "what is launched next is of the old image"
    assert "app-4 is DOWN" in run.reason
    assert run.blames_image


def test_a_first_host_that_fails_requests_is_drained_and_ended(machines, journal):
    machines.unfit = {NEW}
    run = exchange(machines, journal)
    assert run.run() == ("rolled back", "")
    assert f"drain {NEW}" in machines.calls
    assert images(machines) == [OLD] * 3
    assert machines.fewest == 3
    assert run.blames_image


def test_later_hosts_that_fail_bring_the_old_image_back_at_full_capacity(machines, journal):
    run = exchange(machines, journal, stopping=lambda: "enough" if len(machines.calls) > 6 else "")
    assert run.run() == ("rolled back", "")
    assert images(machines) == [OLD] * 3
    assert machines.fewest == 3
    assert run.reason == "enough"
    assert not run.blames_image, "an interruption says nothing against the image"


def test_going_back_that_fails_stops_with_what_is_left(machines, journal):
    machines.unfit = {NEW}
    drain = machines.drain

    def stuck(host: Host) -> None:
        if host.image_id == NEW:
            raise FlotillaError("a load balancer does not answer")
        drain(host)

    machines.drain = stuck  # type: ignore[method-assign]
    assert exchange(machines, journal).run() == ("stopped", "a load balancer does not answer")
    assert machines.fewest == 3


def test_auto_scaling_that_launches_nothing_is_named(machines, journal):
    machines.look = lambda: (list(machines.hosts), machines.asked)  # type: ignore[method-assign]
    run = exchange(machines, journal)
    run.run()
    assert "no capacity in this zone" in run.reason


def calls_of_a_good_run() -> list[str]:
    machines = Machines()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.jsonl"
        exchange(machines, Journal(path, lambda: datetime(2026, 1, 1, tzinfo=UTC))).run()
    return machines.calls


@pytest.mark.parametrize("cut", range(len(calls_of_a_good_run())))
@pytest.mark.parametrize("onward", [True, False], ids=["on", "back"])
def test_a_run_that_is_killed_at_any_step_is_ended_by_another_one(
    tmp_path: Path, cut: int, onward: bool
) -> None:
    machines = Machines()
    journal = Journal(tmp_path / "one.jsonl", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    journal.write("begin", by="me", plan=PLAN.as_dict(), largest=6)
    at = dying_at(machines, cut)
    with pytest.raises(Killed):
        exchange(machines, journal).run()
    at()
    past = rules.past("one", read(journal.path))
    assert past
    back = "" if onward else "the operator wants the image of before"
    run = exchange(machines, journal, proven=past.proven, going_back=back)
    result, _ = run.run()
    assert result == ("done" if onward else "rolled back")
    assert images(machines) == [NEW if onward else OLD] * 3
    assert machines.fewest == 3


def dying_at(machines: Machines, cut: int) -> Callable[[], None]:
    """Let call number ``cut`` be the last one; the answer makes the tier live on."""
    called = machines.called

    def dying(call: str) -> None:
        if len(machines.calls) == cut:
            raise Killed
        called(call)

    machines.called = dying  # type: ignore[method-assign]

    def live() -> None:
        machines.called = called  # type: ignore[method-assign]

    return live

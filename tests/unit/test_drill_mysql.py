"""The drill of MySQL failovers: when the cluster counts as in order, and what a drill refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from mysql_model import Model

from flotilla.drill import mysql as drill
from flotilla.drill import writes
from flotilla.drill.mysql_cluster import disorder
from flotilla.drill.mysql_faults import STRIKES, UNIT, Site
from flotilla.drill.strikes import struck
from flotilla.drill.subject import View
from flotilla.errors import BadOption, FlotillaError, Refused, Unreachable
from flotilla.rules.drill_fault import Aim, Power
from flotilla.rules.drill_mysql import FAULTS
from flotilla.rules.mysql import Repair, repair
from flotilla.rules.mysql_topology import Record, Topology


def whole() -> Model:
    model = Model()
    plan = repair(model.look(), None)
    assert isinstance(plan, Repair)
    for step in plan.steps:
        model.apply(step, plan.primary.name, plan.term)
    return model


def looked(model: Model) -> tuple[Topology, Record]:
    assert model.record is not None
    topology = model.look()
    members = tuple(
        replace(m, semi_sync=replace(m.semi_sync, clients=2)) if m.semi_sync.source else m
        for m in topology.members
    )
    return replace(topology, members=members), model.record


# --- in order -------------------------------------------------------------------------------------


def test_a_whole_cluster_is_in_order():
    assert disorder(*looked(whole())) == ""


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: m.restart("mysql-1"), "read-only"),
        (lambda m: m.restart("mysql-2"), "does not replicate"),
        (lambda m: m.silent.add("mysql-1"), "was not seen"),
        (lambda m: m.silent.add("mysql-3"), "it is off"),
        (lambda m: setattr(m.servers["mysql-2"], "super_read_only", False), "would accept writes"),
        (lambda m: m.write("mysql-3"), "alone holds"),
    ],
)
def test_whatever_is_out_of_order_is_named(spoil, says):
    model = whole()
    spoil(model)
    assert says in disorder(*looked(model))


def test_a_primary_that_nobody_acknowledges_to_is_not_in_order():
    topology, record = looked(whole())
    alone = tuple(replace(m, semi_sync=replace(m.semi_sync, clients=0)) for m in topology.members)
    assert "nobody acknowledges" in disorder(replace(topology, members=alone), record)


# --- faults ---------------------------------------------------------------------------------------


class Shell:
    """Notes what is run where; a host in ``down`` does not answer."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.down: set[str] = set()
        self.given: list[str] = []

    def run(self, host: str, command: str, **_: Any) -> None:
        if host in self.down:
            raise Unreachable(f"{host}: no answer")
        self.ran.append((host, command))


class Network:
    """Notes what is cut and healed."""

    def __init__(self) -> None:
        self.struck: list[tuple[str, str, dict[str, str]]] = []
        self.healed: list[str] = []

    def strike(self, target: str, kind: str, **options: str) -> None:
        self.struck.append((target, kind, options))

    def heal(self, target: str = "") -> None:
        self.healed.append(target)


def site(outside: Network | None = None) -> tuple[Site, Shell]:
    shell = Shell()
    settings: Any = SimpleNamespace()
    made = Site(
        settings=settings,
        runner=shell,  # type: ignore[arg-type]
        unit=UNIT,
        members={},
        apps={},
        give=shell.given.append,
        outside=outside,
        known=None,  # type: ignore[arg-type]
    )
    return made, shell


def test_every_fault_can_be_made():
    assert set(STRIKES) == set(FAULTS)


@pytest.mark.parametrize("name", ["kill", "freeze", "restart", "disk-full"])
def test_a_fault_of_the_shell_is_made_on_the_primary_alone(name):
    where, shell = site()
    with struck(STRIKES, where, FAULTS[name], Aim("mysql-2")):
        assert shell.ran
    assert {host for host, _ in shell.ran} == {"mysql-2"}
    assert where.undoing == []


def test_a_switchover_is_asked_for_and_nothing_is_broken_or_undone():
    where, shell = site()
    with struck(STRIKES, where, FAULTS["switchover"], Aim("mysql-2")):
        pass
    assert (shell.given, shell.ran, where.undoing) == (["mysql-2"], [], [])


def test_a_frozen_server_goes_on_afterwards_and_a_fenced_host_is_left_alone():
    where, shell = site()
    with struck(STRIKES, where, FAULTS["freeze"], Aim("mysql-2")):
        pass
    commands = [command for _, command in shell.ran]
    assert "--on-active=300" in commands[0], "also when we are killed"
    assert ["STOP" in command for command in commands] == [False, True, False]
    assert "CONT" in shell.ran[-1][1]
    with struck(STRIKES, where, FAULTS["freeze"], Aim("mysql-2")):
        shell.down.add("mysql-2")


def test_only_the_fault_s_own_target_is_healed():
    network = Network()
    where, _ = site(network)
    aim = Aim("mysql-1", {"from": "mysql-2"})
    with struck(STRIKES, where, FAULTS["partition-replicas-only"], aim):
        assert network.struck == [("mysql-1", "cut", {"from": "mysql-2"})]
        assert network.healed == []
    assert network.healed == ["mysql-1"]


def test_a_fault_is_undone_when_the_run_breaks():
    network = Network()
    where, _ = site(network)

    def breaks() -> None:
        with struck(STRIKES, where, FAULTS["zone"], Aim("eu-central-1a")):
            raise FlotillaError("the cluster cannot be seen")

    with pytest.raises(FlotillaError, match="cannot be seen"):
        breaks()
    assert network.healed == ["eu-central-1a"]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fault": "earthquake"}, "choose from: kill, freeze"),
        ({"fault": "kill", "runs": 0}, "is 1 to"),
        ({"fault": "kill", "writers": 0}, "is 1 to"),
        ({"fault": "kill", "stop_seconds": -1.0}, "is 0 to 600"),
    ],
)
def test_what_cannot_be_rehearsed_is_a_bad_option(options, says):
    with pytest.raises(BadOption, match=says):
        drill.Options(**options).demand()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_of_the_network_are_refused_where_nobody_has_power_over_it(fault):
    if fault.power is Power.OUTSIDE:
        with pytest.raises(Refused, match="production"):
            writes.demand_power(fault, None, "production")
    else:
        writes.demand_power(fault, None, "production")
    writes.demand_power(fault, Network(), "production")


def test_slow_stops_are_refused_where_nobody_can_slow_them():
    with pytest.raises(Refused, match="slow stops"):
        writes.demand_power(FAULTS["kill"], None, "production", " with slow stops")


def test_all_runs_are_told_together_with_what_each_broke():
    run = {
        "write_gap_seconds": 1.0,
        "writer_gap_seconds": 1.0,
        "mending_gap_seconds": 0.1,
        "dual_writable_seconds": 0.0,
        "converged_seconds": 2.0,
        "ended_seconds": 20.0,
        "acked": 10,
        "failed": 1,
        "errors_beyond_gap": 0,
        "unknown": 1,
        "unknown_there": 0,
        "lost": 0,
        "lost_ids": [],
        "old": "mysql-1",
        "new": "mysql-2",
        "term": 2,
        "old_primary": "rejoined",
        "not_fetched": {},
        "not_mended": "",
    }
    bad = run | {"lost": 2, "lost_ids": ["a", "b"], "not_mended": "mysql-1 does not follow"}
    told = writes.summed([run, bad], FAULTS["kill"])
    assert (told["runs"], told["fault"], told["acked"], told["lost"]) == (2, "kill", 20, 2)
    assert [why.split(":")[0] for why in told["broken"]] == ["run 2", "run 2"]
    assert "mysql-1 -> mysql-2 (term 2)" in writes.line(0, 2, run)
    assert "never" in writes.line(0, 2, run | {"converged_seconds": None})


# --- getting over it ------------------------------------------------------------------------------


class Sky:
    """Time that passes only while somebody sleeps, and a cluster that changes with it.

    ``blind`` is when nobody can be asked; from ``moved`` on the role is with mysql-2.
    """

    def __init__(self, moved: float, blind: tuple[float, float] = (0.0, 0.0)) -> None:
        self.now = 1000.0
        self._moved, self._blind = 1000.0 + moved, blind

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def view(self, but: str = "") -> View:
        begin, end = self._blind
        if 1000.0 + begin <= self.now < 1000.0 + end:
            raise Unreachable("the bastion does not answer")
        assert but in {"", "mysql-1"}
        who = "mysql-2" if self.now >= self._moved else "mysql-1"
        return View(who, 2, "", {"u": who})


def got_over(
    sky: Sky, fault: str, monkeypatch: pytest.MonkeyPatch, *, is_struck: bool = True
) -> float | None:
    monkeypatch.setattr(writes, "time", sky)
    made = drill.Drill.__new__(drill.Drill)
    made._subject = sky  # type: ignore[assignment]
    found = made._got_over_it(FAULTS[fault], View("mysql-1", 1, ""), 1000.0, is_struck=is_struck)
    return None if found is None else found - 1000.0


def test_a_fault_lasts_as_long_as_it_should_and_the_moment_of_order_is_kept(monkeypatch):
    sky = Sky(moved=3.0)
    assert got_over(sky, "freeze", monkeypatch) == pytest.approx(3.0, abs=0.3)
    assert sky.now - 1000 == pytest.approx(FAULTS["freeze"].hold_seconds, abs=0.6)


def test_a_cluster_that_does_not_move_is_waited_for_and_then_given_up(monkeypatch):
    sky = Sky(moved=1e6)
    assert got_over(sky, "kill", monkeypatch) is None
    assert sky.now - 1000 == pytest.approx(writes.CONVERGE_SECONDS, abs=1)


def test_when_the_fault_takes_our_own_sight_it_is_undone_in_time_and_looked_at_then(monkeypatch):
    sky = Sky(moved=3.0, blind=(1.0, 30.0))
    assert got_over(sky, "zone", monkeypatch) is None
    assert sky.now - 1000 == pytest.approx(FAULTS["zone"].hold_seconds, abs=1)
    found = got_over(sky, "zone", monkeypatch, is_struck=False)
    assert found == pytest.approx(30.0, abs=0.6)


class Full(Sky):
    """mysql-2 takes over, and mysql-1 does not start while its disk is full."""

    def view(self, but: str = "") -> View:
        view = super().view(but)
        return view if but or self.now < self._moved else replace(view, why="mysql-1 is silent")


def test_who_cannot_come_back_is_not_waited_for_once_somebody_else_serves(monkeypatch):
    found = got_over(Full(moved=30.0), "disk-full", monkeypatch)
    assert found == pytest.approx(FAULTS["disk-full"].hold_seconds, abs=0.6)


def test_who_may_stay_is_not_called_in_order_before_the_fault_had_its_time(monkeypatch):
    sky = Sky(moved=1e6)
    found = got_over(sky, "too-many-connections", monkeypatch)
    assert found == pytest.approx(FAULTS["too-many-connections"].hold_seconds, abs=0.6)

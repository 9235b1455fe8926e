"""The drill of MySQL failovers: whom faults strike, what clients' entries mean, what is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import drill_writes as rules
from flotilla.rules.drill_fault import MEDIAN_RUNS, Aim, Ends
from flotilla.rules.drill_mysql import FAULTS
from flotilla.rules.drill_writes import Seen
from flotilla.rules.ledger import Entry, Fate

MEMBERS = {"mysql-1": "a", "mysql-2": "b", "mysql-3": "c"}
CLIENTS = {"app-1": "a", "app-2": "b", "app-3": "c"}
OLD, NEW = "uuid-1", "uuid-2"


def writes(
    label: str, server: str, begin: float, end: float, *, fate: Fate = Fate.ACKED
) -> list[Entry]:
    """Entries of one writer, one after the other."""
    every = 0.1
    count = round((end - begin) / every)
    return [
        Entry(
            f"r-{label}-{begin:g}x{n}",
            begin + n * every,
            begin + n * every + 0.01,
            fate,
            server=server,
        )
        for n in range(count + 1)
    ]


def client(label: str, gap_from: float = 10.0, gap_to: float = 11.0) -> list[Entry]:
    """A writer whose primary moved."""
    return [
        *writes(label, OLD, 0, gap_from),
        *writes(label, "", gap_from + 0.2, gap_to - 0.2, fate=Fate.FAILED),
        *writes(label, NEW, gap_to, 30),
    ]


def seen(**more: Any) -> Seen:
    clients = {f"app-{n}": client(f"app-{n}.0", gap_to=11.0 + n / 10) for n in (1, 2, 3)}
    probes = {
        "mysql-1": writes("mysql-1.0", OLD, 0.05, 10),
        "mysql-2": writes("mysql-2.0", NEW, 11.05, 30),
    }
    base = Seen(
        clients=clients,
        probes=probes,
        found={},
        struck=10.0,
        healed=20.0,
        ended=30.0,
        converged=12.5,
        old="mysql-1",
        new="mysql-2",
        fate=("rejoined",),
        names={OLD: "mysql-1", NEW: "mysql-2"},
        term=7,
    )
    changed = replace(base, **more)
    if "found" in more:
        return changed
    entries = [e for g in (changed.clients, changed.probes) for one in g.values() for e in one]
    return replace(changed, found={e.id: e.server for e in entries if e.fate is Fate.ACKED})


def run(**more: Any) -> dict[str, Any]:
    return rules.figures(seen(**more))


# --- whom to strike -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(set(FAULTS) - {"zone", "partition-replicas-only", "switchover"})
)
def test_a_fault_strikes_the_primary(name):
    assert rules.aim(FAULTS[name], "mysql-2", MEMBERS, CLIENTS) == Aim("mysql-2")


def test_a_primary_is_cut_from_its_replicas_by_name_and_from_nobody_else():
    found = rules.aim(FAULTS["partition-replicas-only"], "mysql-2", MEMBERS, CLIENTS)
    assert found == Aim("mysql-2", {"from": "mysql-1,mysql-3"})
    assert isinstance(
        rules.aim(FAULTS["partition-replicas-only"], "mysql-2", {"mysql-2": "b"}, CLIENTS), str
    )


def test_a_switchover_goes_to_somebody_else():
    fault = FAULTS["switchover"]
    assert rules.aim(fault, "mysql-1", MEMBERS, CLIENTS) == Aim("mysql-2")
    assert rules.aim(fault, "mysql-2", MEMBERS, CLIENTS) == Aim("mysql-1")
    assert "no replica" in str(rules.aim(fault, "mysql-1", {"mysql-1": "a"}, CLIENTS))


def test_a_zone_takes_its_clients_along():
    found = rules.aim(FAULTS["zone"], "mysql-3", MEMBERS, CLIENTS)
    assert found == Aim("c", cut_off=frozenset({"app-3"}))


@pytest.mark.parametrize(
    ("members", "clients"),
    [(dict.fromkeys(MEMBERS, "a"), CLIENTS), (MEMBERS, dict.fromkeys(CLIENTS, "a"))],
)
def test_a_zone_that_holds_everything_is_not_cut(members, clients):
    assert "nobody would be left" in str(rules.aim(FAULTS["zone"], "mysql-1", members, clients))


# --- one run --------------------------------------------------------------------------------------


def test_the_gap_is_that_of_the_host_that_waited_longest():
    told = run()
    assert told["write_gap_seconds"] == pytest.approx(1.3, abs=0.02)
    assert told["gap_began_after_seconds"] == pytest.approx(0.01, abs=0.02)
    assert (told["lost"], told["dual_writable_seconds"], told["converged_seconds"]) == (0, 0, 2.5)
    assert (told["old"], told["new"], told["term"]) == ("mysql-1", "mysql-2", 7)
    assert told["old_primary"] == "rejoined"


def test_a_writer_that_hangs_alone_is_told_besides():
    clients = dict(seen().clients)
    clients["app-1"] = [*clients["app-1"], *client("app-1.1", gap_to=15.0)]
    told = run(clients=clients)
    assert told["write_gap_seconds"] == pytest.approx(1.3, abs=0.02)
    assert told["writer_gap_seconds"] == pytest.approx(5.0, abs=0.02)


def test_errors_in_a_writer_s_own_gap_are_the_gap_and_any_other_is_an_error_beyond():
    assert run()["errors_beyond_gap"] == 0
    clients = dict(seen().clients)
    late = writes("app-1.0", NEW, 25.05, 25.05, fate=Fate.FAILED)
    early = writes("app-2.0", OLD, 4.05, 4.05, fate=Fate.UNKNOWN)
    clients["app-1"] = [*clients["app-1"], *late]
    clients["app-2"] = [*clients["app-2"], *early]
    told = run(clients=clients)
    assert told["errors_beyond_gap"] == 2
    assert any("2 errors" in why for why in rules.broken(told, FAULTS["switchover"]))
    assert not any("errors" in why for why in rules.broken(told, FAULTS["kill"]))


def test_errors_in_a_gap_are_not_beyond_it_because_another_one_was_longer():
    clients = dict(seen().clients)
    clients["app-1"] = [entry for entry in clients["app-1"] if not 15 < entry.ended < 18]
    told = run(clients=clients)
    assert told["write_gap_seconds"] > 2.9
    assert (told["failed"] > 0, told["errors_beyond_gap"]) == (True, 0)


def test_errors_after_all_was_healed_are_beyond_a_gap_that_had_none():
    quiet = {
        host: [entry for entry in entries if entry.fate is Fate.ACKED]
        for host, entries in seen().clients.items()
    }
    assert run(clients=quiet)["errors_beyond_gap"] == 0
    quiet["app-1"] += writes("app-1.0", NEW, 25.05, 25.05, fate=Fate.FAILED)
    assert run(clients=quiet)["errors_beyond_gap"] == 1


def test_silence_of_clients_that_the_fault_cut_off_is_no_outage_but_their_losses_are_losses():
    clients = dict(seen().clients)
    clients["app-1"] = writes("app-1.0", OLD, 0, 10)
    found = dict(seen(clients=clients).found)
    told = run(clients=clients, cut_off=frozenset({"app-1"}))
    assert told["write_gap_seconds"] == pytest.approx(1.3, abs=0.02)
    del found[clients["app-1"][3].id]
    assert run(clients=clients, cut_off=frozenset({"app-1"}), found=found)["lost"] == 1


def test_what_a_probe_was_told_can_be_lost_as_well():
    full = seen()
    found = dict(full.found)
    del found[full.probes["mysql-1"][5].id]
    told = run(found=found)
    assert told["lost"] == 1
    assert told["lost_ids"] == [full.probes["mysql-1"][5].id]


def test_an_old_primary_that_acknowledges_a_probe_meanwhile_is_seen():
    probes = {name: list(one) for name, one in seen().probes.items()}
    probes["mysql-1"] += writes("mysql-1.0", OLD, 20, 20.5)
    told = run(probes=probes)
    assert told["dual_writable_seconds"] == pytest.approx(0.5, abs=0.02)
    assert told["writable"]["mysql-1"][-1] == pytest.approx([10, 10.5], abs=0.01)
    assert any("at once" in why for why in rules.broken(told, FAULTS["kill"]))


def test_a_gap_while_everything_is_put_back_is_not_the_fault_s():
    clients = {"app-1": [*client("app-1.0")[:-60], *writes("app-1.0", NEW, 29, 30)]}
    told = run(clients=clients)
    assert told["write_gap_seconds"] == pytest.approx(1.0, abs=0.02)
    assert told["mending_gap_seconds"] > 4


# --- promises -------------------------------------------------------------------------------------


def test_a_run_that_went_well_broke_nothing():
    assert rules.broken(run(), FAULTS["kill"]) == []


@pytest.mark.parametrize(
    ("fault", "wrong", "word"),
    [
        ("kill", {"lost": 1, "lost_ids": ["x"]}, "are gone"),
        ("disk-full", {"lost": 1, "lost_ids": ["x"]}, "are gone"),
        ("kill", {"new": "mysql-1"}, "still primary"),
        ("too-many-connections", {}, "which was alive"),
        ("kill", {"converged_seconds": None}, "by itself"),
        ("kill", {"write_gap_seconds": 3.01}, "3.01 s"),
        ("freeze", {"write_gap_seconds": 7.5}, "7.50 s"),
        ("kill", {"acked": 0}, "no write was acknowledged"),
        ("kill", {"not_fetched": {"app-1": "no answer"}}, "not known"),
    ],
)
def test_a_promise_that_is_not_kept_is_named(fault, wrong, word):
    told = rules.broken(run() | wrong, FAULTS[fault])
    assert len(told) == 1
    assert word in told[0]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_no_fault_may_cost_an_acknowledged_write_or_make_two_primaries(fault):
    ended = "mysql-1" if fault.ends is Ends.STAYED else "mysql-2"
    good = run() | {"new": ended, "write_gap_seconds": 0.4}
    assert rules.broken(good, fault) == []
    assert rules.broken(good | {"lost": 1, "lost_ids": ["x"]}, fault)
    assert rules.broken(good | {"dual_writable_seconds": 0.05}, fault)


def test_only_a_restart_and_a_full_disk_may_end_either_way():
    either = {name for name, fault in FAULTS.items() if fault.ends is Ends.EITHER}
    assert either == {"restart", "disk-full"}


def test_all_runs_together_are_summed_and_their_median_is_held_to_the_bar():
    each = [run(), run() | {"write_gap_seconds": 1.9}, run() | {"write_gap_seconds": 1.7}]
    told = rules.over_all(each)
    assert told["acked"] == 3 * each[0]["acked"]
    assert told["lost"] == 0
    assert told["write_gap_seconds"] == {"median": 1.7, "worst": 1.9}
    assert told["old_primary"] == {"rejoined": 3}
    assert rules.broken_by_all(told, FAULTS["kill"], MEDIAN_RUNS) == [
        "the median write gap is 1.70 s, it may be 1.5 s"
    ]
    assert rules.broken_by_all(told, FAULTS["kill"], MEDIAN_RUNS - 1) == []
    assert rules.broken_by_all(told, FAULTS["freeze"], MEDIAN_RUNS) == []
    assert rules.broken_by_all(rules.over_all([]), FAULTS["kill"], MEDIAN_RUNS) == []


@given(st.lists(st.sampled_from([f.name for f in FAULTS.values()]), min_size=1, max_size=3))
def test_every_figure_survives_a_run_in_which_nobody_wrote(names):
    nobody = run(clients={}, probes={})
    told = rules.over_all([nobody for _ in names])
    assert (told["acked"], told["lost"]) == (0, 0)
    assert told["write_gap_seconds"] == {"median": 0.0, "worst": 0.0}
    for name in names:
        assert rules.broken(nobody, FAULTS[name]), "silence keeps no promise"

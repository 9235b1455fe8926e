"""What changed between a plan and its run is named host by host; how long a run will take."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import drift as rules
from flotilla.rules.deploy import Host
from flotilla.rules.duration import Past, expected
from flotilla.rules.rotation import Server

RELEASE = {"version": "2", "sha256": "ab" * 32}


def host(number: int, **changes) -> Host:
    made = Host(f"app-{number}", "zone-a", "1", active=True, stale=False, views={})
    return replace(made, **changes)


def facts(hosts=None, states=None, fleet="flotilla-lab", release=RELEASE) -> dict:
    found = hosts if hosts is not None else [host(1), host(2)]
    servers = {
        lb: {h.name: Server(h.name, (states or {}).get((lb, h.name), "UP"), "L7OK", 0, 0)
             for h in found}
        for lb in ("lb-1", "lb-2")
    }  # fmt: skip
    return rules.facts(fleet, release, found, servers)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (facts([host(1)]), "app-2 is gone"),
        (facts([host(1), host(2), host(3)]), "app-3 is a new host"),
        (facts([host(1), host(2, version="3")]), "app-2 ran 1, now 3"),
        (facts([host(1), host(2, version=None)]), "app-2 ran 1, now nothing"),
        (facts([host(1), host(2, zone="zone-b")]), "app-2 was in zone-a, now in zone-b"),
        (facts([host(1), host(2, active=False)]), "app-2's application does not run any more"),
        (facts([host(1), host(2, stale=True)]), "app-2's application has other settings"),
        (facts(states={("lb-2", "app-1"): "DRAIN"}), "app-1 was UP on lb-2, now DRAIN"),
        (facts(fleet="flotilla-test"), "the plan is for the fleet flotilla-lab, this is"),
        (facts(release=RELEASE | {"sha256": "cd" * 32}), "release 2 had the checksum abababababab"),
    ],
)
def test_every_change_is_named(now, said):
    assert any(line.startswith(said) for line in rules.drift(facts(), now))


def test_a_load_balancer_that_is_gone_or_new_is_named():
    now = facts()
    now["balancers"]["lb-3"] = now["balancers"].pop("lb-2")
    assert rules.drift(facts(), now) == ["lb-2 is gone", "lb-3 is a new load balancer"]


def test_nothing_changed_says_nothing_even_through_a_file():
    assert rules.drift(json.loads(json.dumps(facts())), facts()) == []


def test_one_failed_check_is_no_drift():
    assert rules.drift(facts(), facts(states={("lb-1", "app-1"): "UP 1/2"})) == []


def test_a_host_that_changed_its_batch_is_named():
    assert rules.moved([["app-1"], ["app-2", "app-3"]], [["app-1"], ["app-2"], ["app-3"]]) == [
        "app-3 was in batch 2, now it is in batch 3"
    ]
    assert rules.moved([["app-1"]], [["app-1"], ["app-2"]]) == [
        "app-2 was left alone, now it is in batch 2"
    ]


names = st.lists(st.integers(1, 6), unique=True)
versions = st.sampled_from(["1", "2", None])


@given(st.dictionaries(st.integers(1, 6), versions), st.dictionaries(st.integers(1, 6), versions))
def test_drift_is_empty_exactly_when_nothing_differs(before, after):
    then, now = (facts([host(n, version=v) for n, v in one.items()]) for one in (before, after))
    assert bool(rules.drift(then, now)) == (before != after)


STEPS = {"drain": 1.0, "switch to 2": 2.0, "soak": 60.0}


def past(host_seconds: float = 3.0, around: float = 10.0) -> Past:
    steps = {"drain": host_seconds, "soak": 60.0}
    return Past(
        seconds=around + 2 * (host_seconds + 60),
        batches=[["app-1"], ["app-2", "app-3"]],
        steps={f"app-{n}": steps for n in (1, 2, 3)},
    )


def test_the_past_says_how_long_a_deploy_takes():
    found = expected([past()], 2, soak_seconds=0, trials=1, most_seconds=100)
    assert (found.seconds, found.deploys) == (16.0, 1)
    assert "as the last deploy took" in found.text


def test_being_watched_counts_as_it_is_set_now_and_not_as_it_was():
    found = expected([past()], 2, soak_seconds=20, trials=3, most_seconds=100)
    assert found.seconds == 16 + 20 * 4


def test_without_a_past_the_limits_say_the_most():
    found = expected([], 3, soak_seconds=5, trials=1, most_seconds=80)
    assert (found.seconds, found.deploys) == (255, 0)
    assert found.text.startswith("at most 255 s")


def test_one_slow_deploy_of_many_does_not_count():
    found = expected(
        [past(), past(300), past(), past(), past()], 2, soak_seconds=0, trials=1, most_seconds=1
    )
    assert found.seconds == 16

"""What the packet filter refused is told once, whatever is loaded in between."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


def load() -> Any:
    path = ROOT / "roles/firewall/files/firewall_tell.py"
    spec = importlib.util.spec_from_file_location("firewall_tell", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tell = load()
RULES = ("input: what no row opens", "output: credentials of the instance")


def rule(chain: str, comment: str | None, *expressions: dict[str, Any]) -> dict[str, Any]:
    named = {} if comment is None else {"comment": comment}
    return {"rule": {"chain": chain, "handle": 7, "expr": list(expressions)} | named}


def counter(packets: int) -> dict[str, Any]:
    return {"counter": {"packets": packets, "bytes": 40 * packets}}


def test_rules_that_refuse_are_read_and_no_others():
    listed = {
        "nftables": [
            {"metainfo": {"version": "1.1.3"}},
            {"table": {"family": "inet", "name": "flotilla", "handle": 4}},
            {"chain": {"name": "input", "handle": 1, "policy": "drop"}},
            rule("input", "SSH", counter(90), {"accept": None}),
            rule("input", "closed", {"match": {}}, counter(3), {"drop": None}),
            rule("output", "closed", counter(2), {"reject": {"type": "icmpx"}}),
            rule("output", "closed", counter(5), {"reject": {"type": "icmpx"}}),
            rule("output", None, counter(1), {"drop": None}),
        ]
    }
    assert tell.counted(listed) == (4, {"input: closed": 3, "output: closed": 7, "output: 7": 1})
    assert tell.counted({}) == (0, {})


def test_a_line_says_what_how_many_and_since_when():
    state = {"table": 1, "counts": {}, "owed": {RULES[1]: 3}, "since": 1_800_000_000.7}
    assert [json.loads(line) for line in tell.lines(state)] == [
        {
            "refused": "credentials of the instance",
            "chain": "output",
            "packets": 3,
            "since": "2027-01-15T08:00:00Z",
        }
    ]


def test_at_the_first_look_nothing_is_owed():
    state = tell.reckoned(None, 5, {RULES[0]: 9}, 1.0)
    assert tell.lines(state) == []
    assert tell.reckoned(state, 5, {RULES[0]: 10}, 2.0)["owed"] == {RULES[0]: 1}


def test_counters_that_somebody_set_back_are_told_from_nothing_on():
    state = tell.reckoned(None, 5, {RULES[0]: 9}, 1.0)
    assert tell.reckoned(state, 5, {RULES[0]: 4}, 2.0)["owed"] == {RULES[0]: 4}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(RULES), st.integers(1, 1000)),
            st.sampled_from(["load", "off", "tell"]),
        ),
        max_size=30,
    )
)
def test_every_packet_is_told_once_over_all_reloads(events: list[Any]) -> None:
    handle, counts, refused, said = 0, {}, dict.fromkeys(RULES, 0), dict.fromkeys(RULES, 0)
    state = tell.reckoned(None, 0, {}, 0.0)
    for now, event in enumerate([*events, "tell"]):
        if isinstance(event, tuple):
            name, packets = event
            if name in counts:  # without a filter nothing is refused
                counts[name] += packets
                refused[name] += packets
            continue
        state = tell.reckoned(state, handle if counts else 0, counts, float(now))
        if event == "tell":
            for line in map(json.loads, tell.lines(state)):
                said[f"{line['chain']}: {line['refused']}"] += line["packets"]
            state |= {"owed": {}, "since": float(now)}
        else:
            handle += 1
            counts = dict.fromkeys(RULES, 0) if event == "load" else {}
    assert said == refused


@pytest.mark.parametrize("held", ["", "{}"])
def test_a_host_without_our_table_has_nothing_to_tell(held: str) -> None:
    assert tell.counted(json.loads(held or "{}")) == (0, {})

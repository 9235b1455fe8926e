"""Faults: what they cut and leave alone, whom they strike, and that every one can be undone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import faults, outage, processes
from lab.cuts import Cut, Node, ZoneCut, tables
from lab.layout import SERVICE_ADDRESSES
from lab.outage import ApiFault, Gate, effect
from lab.ports import Context

NODES = [
    Node(f"i-{zone}{number}", f"10.0.{index}.{number}", zone)
    for index, zone in enumerate("abc")
    for number in (4, 5)
]
OPERATOR, OUTSIDE = "198.18.0.1", "10.9.9.9"
EVERYBODY = [*(node.address for node in NODES), *SERVICE_ADDRESSES, OPERATOR]


def loses(text: str, direction: str, peer: str) -> bool:
    """Whether the table drops a packet from (in) or to (out) this address."""
    chain = re.search(rf"chain {direction} \{{(.*?)\n  \}}", text, re.DOTALL)
    for line in chain.group(1).splitlines() if chain else []:
        words = line.split()
        if words == ["drop"]:
            return True
        if words[:1] == ["ip"] and words[-1] == "drop":
            named = [word.strip(",") for word in words[words.index("{") + 1 : words.index("}")]]
            inside = peer in named or ("198.18.0.0/15" in named and peer == OPERATOR)
            if inside is not ("!=" in words):
                return True
    return False


FAULTS = st.lists(
    st.one_of(
        st.builds(ZoneCut, st.sampled_from("abc")),
        st.builds(
            Cut,
            st.sampled_from([node.instance_id for node in NODES]),
            st.none()
            | st.lists(
                st.sampled_from(
                    [*(node.instance_id for node in NODES), "api", "operator", "i-gone"]
                ),
                min_size=1,
                max_size=3,
            ).map(tuple),
            st.sampled_from(["both", "in", "out"]),
        ),
    ),
    max_size=4,
)
ADDRESS = {node.instance_id: {node.address} for node in NODES} | {
    "api": set(SERVICE_ADDRESSES),
    "operator": {OPERATOR},
}


def expected(fault: Cut | ZoneCut, node: Node, direction: str, peer: str) -> bool:
    if isinstance(fault, ZoneCut):
        near = {other.address for other in NODES if other.zone == node.zone}
        return fault.zone == node.zone and peer not in near
    if fault.instance_id != node.instance_id or fault.direction not in ("both", direction):
        return False
    if fault.peers is None:
        return True
    return any(peer in ADDRESS.get(name, ()) for name in fault.peers)


@given(FAULTS)
def test_a_host_loses_exactly_the_packets_its_faults_name(struck: list[Cut | ZoneCut]) -> None:
    for node in NODES:
        text = tables(struck, NODES)[node.instance_id]
        for direction in ("in", "out"):
            for peer in EVERYBODY:
                wanted = any(expected(fault, node, direction, peer) for fault in struck)
                assert loses(text, direction, peer) is wanted


def test_without_faults_the_table_is_removed() -> None:
    assert set(tables([], NODES).values()) == {
        "add table inet lab_fault\ndelete table inet lab_fault\n"
    }


def test_a_zone_that_is_cut_reaches_neither_api_nor_operator() -> None:
    text = tables([ZoneCut("a")], NODES)["i-a4"]
    assert all(loses(text, "out", peer) for peer in (*SERVICE_ADDRESSES, OPERATOR, OUTSIDE))
    assert not loses(text, "out", "10.0.0.5")


# --- the API --------------------------------------------------------------------------------------


def test_a_delay_is_for_the_named_action_or_service_only() -> None:
    slow = [ApiFault("StopInstances", 30.0), ApiFault("dynamodb", 2.0)]
    assert effect(slow, ["ec2", "StopInstances"]) == (30.0, None)
    assert effect(slow, ["dynamodb", "PutItem"]) == (2.0, None)
    assert effect(slow, ["ec2", "DescribeInstances"]) == (0.0, None)


def test_an_outage_of_all_ends_every_call_and_its_end_lets_them_pass() -> None:
    slept: list[float] = []
    statuses: list[str] = []
    gate = Gate(sleep=slept.append)
    gate.set(1, ApiFault(mode="503"))
    gate.set(2, ApiFault("PutItem", delay_seconds=1.5))
    body = gate.refuse(["dynamodb", "PutItem"], {}, lambda status, _: statuses.append(status))
    assert b"ServiceUnavailable" in b"".join(body)
    assert (statuses, slept) == (["503 Service Unavailable"], [1.5])
    gate.set(1, None)
    assert gate.refuse(["dynamodb", "PutItem"], {}, None) is None
    assert slept == [1.5, 1.5]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def lingering(seconds: float) -> tuple[Gate, Clock]:
    clock = Clock()
    gate = Gate(sleep=clock.sleep, clock=clock)
    gate.set(1, ApiFault("StopInstances", linger_seconds=seconds))
    return gate, clock


def test_a_slow_stop_is_answered_at_once_and_begins_later() -> None:
    gate, clock = lingering(30.0)
    assert gate.refuse(["ec2", "StopInstances"], {}, None) is None
    assert clock.now == 0
    gate.linger("StopInstances", over=lambda: False)
    assert clock.now == pytest.approx(30.0, abs=0.2)
    gate.linger("TerminateInstances", over=lambda: False)
    assert clock.now == pytest.approx(30.0, abs=0.2)


def test_a_slow_stop_waits_no_longer_once_it_is_healed_or_the_host_is_gone() -> None:
    gate, clock = lingering(30.0)
    gate.linger("StopInstances", over=lambda: clock.now > 5)
    assert clock.now == pytest.approx(5.0, abs=0.2)
    gate.set(1, None)
    gate.linger("StopInstances", over=lambda: False)
    assert clock.now == pytest.approx(5.0, abs=0.2)


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "4242.5"])
    yield child
    child.kill()
    child.wait()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(what, deadline_seconds: float = 5.0) -> None:
    end = time.monotonic() + deadline_seconds
    while not what():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)


def test_a_process_is_found_by_its_command_line_and_stopped(sleeper) -> None:
    def found() -> list[processes.Process]:
        return processes.chosen(processes.of_host(os.getpid()), pattern=r"^sleep 4242\.5$")

    until(found)
    assert [process.pid for process in found()] == [sleeper.pid]
    processes.send(found(), signal.SIGSTOP)
    until(lambda: state(sleeper.pid) == "T")
    processes.send(found(), signal.SIGCONT)
    until(lambda: state(sleeper.pid) == "S")


def test_a_process_that_is_gone_is_not_said_to_be_reached(sleeper) -> None:
    gone = processes.Process(2**22 - 3, "gone", "")
    assert processes.send([gone], signal.SIGTERM) == []


def test_who_holds_files_open_under_a_path_is_known(tmp_path) -> None:
    child = subprocess.Popen(["tail", "-f", "/dev/null"], stdout=(tmp_path / "log").open("wb"))
    try:
        mine = processes.Process(child.pid, "tail", "")
        assert processes.holding([mine], str(tmp_path)) == [mine]
        assert processes.holding([mine], str(tmp_path) + "x") == []
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("wrong", [{}, {"unit": "a", "pattern": "b"}, {"pattern": "("}])
def test_an_unclear_choice_of_process_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"unit=|regular expression"):
        processes.chosen([], **wrong)


# --- who is struck --------------------------------------------------------------------------------


class Hosts:
    """Two hosts that note what is done to them."""

    def __init__(self) -> None:
        self.frozen: set[str] = set()
        self.tables: dict[str, str] = {}

    def netns(self, instance_id: str) -> str | None:
        return f"flab-{instance_id}"

    def pid(self, instance_id: str) -> int | None:
        return None if instance_id == "i-3" else 4242

    def freeze(self, instance_id: str) -> None:
        self.frozen.add(instance_id)

    def thaw(self, instance_id: str) -> None:
        self.frozen.discard(instance_id)

    def in_netns(self, instance_id: str, argv, *, stdin: str):
        self.tables[instance_id] = stdin
        return subprocess.CompletedProcess(argv, 0, "", "")


def instance(number: int, name: str) -> SimpleNamespace:
    return SimpleNamespace(
        id=f"i-{number}",
        private_ip=f"10.0.0.{number}",
        placement=SimpleNamespace(zone="eu-central-1a"),
        state="running",
        get_tags=lambda: [{"key": "Name", "value": name}],
    )


@pytest.fixture
def context() -> Iterator[Context]:
    instances = [
        instance(1, "mysql-1"),
        instance(2, "mysql-2"),
        instance(3, "web"),
        instance(4, "web"),
    ]
    made = Context(
        hosts=Hosts(),
        ec2=lambda: SimpleNamespace(all_instances=lambda: instances),
        backend=lambda _: None,
        account="",
        region="eu-central-1",
        zones=("eu-central-1a", "eu-central-1b"),
        cache="",
        log=lambda *_: None,
        on_instance_state=lambda _: None,
    )
    yield made
    faults.heal(made)
    assert faults.active() == []


@pytest.mark.parametrize(
    ("kind", "target", "args", "says"),
    [
        ("explode", "mysql-1", {}, r"no fault 'explode'; choose from: kill, .*thaw"),
        ("freeze", "mysql-9", {}, r"no host 'mysql-9'; hosts: mysql-1, mysql-2"),
        ("freeze", "web", {}, r"2 hosts are named 'web'; say which: i-3, i-4"),
        ("freeze", "i-3", {}, r"web does not run"),
        ("zone", "eu-west-1a", {}, r"no zone 'eu-west-1a'; choose from: eu-central-1a"),
        ("slow-api", "mysql-1", {"seconds": 1}, r"its target is: api"),
        ("slow-api", "api", {"seconds": "soon"}, r"seconds=NUMBER, 0 or more; got 'soon'"),
        ("slow-api", "api", {}, r"seconds=NUMBER"),
        ("slow-stop", "api", {"seconds": "-1"}, r"seconds=NUMBER, 0 or more; got '-1'"),
        ("api-outage", "api", {"mode": "404"}, r"choose from: 503, hangup"),
        ("freeze", "mysql-1", {"seconds": 3}, r"does not know seconds; it takes: no arguments"),
        ("cut", "mysql-1", {"from": "mysql-2,nobody"}, r"no host 'nobody'"),
        ("cut", "mysql-1", {"from": "mysql-1"}, r"cannot be cut from itself"),
        ("cut", "mysql-1", {"direction": "up"}, r"both, in, out"),
        ("kill-process", "mysql-1", {"unit": "mysql", "signal": "NOPE"}, r"no signal 'NOPE'"),
        ("fill-disk", "mysql-1", {}, r"needs path="),
    ],
)
def test_a_wrong_fault_is_refused_with_the_choices(context, kind, target, args, says) -> None:
    with pytest.raises(ValueError, match=says):
        faults.inject(context, kind, target, args)
    assert faults.active() == []


def test_healing_one_host_leaves_the_faults_of_the_others(context) -> None:
    faults.inject(context, "freeze", "mysql-1")
    faults.inject(context, "freeze", "mysql-2")
    faults.inject(context, "cut", "mysql-1", {"from": "mysql-2,api"})
    healed = faults.heal(context, "mysql-1")
    assert [fault["kind"] for fault in healed["healed"]] == ["cut", "freeze"]
    assert context.hosts.frozen == {"i-2"}
    assert "drop" not in context.hosts.tables["i-1"]
    assert [fault["host"] for fault in faults.active()] == ["mysql-2"]


def test_thawing_leaves_the_other_faults_of_the_host(context) -> None:
    faults.inject(context, "freeze", "mysql-1")
    faults.inject(context, "cut", "mysql-1")
    faults.inject(context, "thaw", "mysql-1")
    assert [fault["kind"] for fault in faults.active()] == ["cut"]
    assert context.hosts.frozen == set()


def test_healing_a_host_that_does_not_exist_names_those_that_do(context) -> None:
    with pytest.raises(ValueError, match="no host 'mysql-7'; hosts: mysql-1"):
        faults.heal(context, "mysql-7")
    assert faults.heal(context, "mysql-1") == {"healed": [], "failed": []}


def test_an_api_fault_ends_with_its_healing(context) -> None:
    faults.inject(context, "api-outage", "api", {"action": "ec2"})
    answer = outage.gate.refuse(["ec2"], {}, lambda *_: None)
    assert answer is not None
    faults.heal(context, "api")
    assert outage.gate.refuse(["ec2"], {}, lambda *_: None) is None

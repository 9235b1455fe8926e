"""What keepalived is told, and when the Elastic IP is claimed.

The claims run against moto's EC2, so that what is asserted is what DescribeAddresses says.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

SCRIPT = Path(__file__).resolve().parents[2] / "roles/keepalived/files/edge_address.py"
Render = Callable[..., str]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("edge_address", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["edge_address"] = module
    spec.loader.exec_module(module)
    return module


edge = _script()


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def configuration(render: Render) -> str:
    return render("keepalived", "keepalived.conf.j2", host="lb-2", keepalived_interface="eth0")


def test_the_address_service_knows_the_other_load_balancers(render: Render) -> None:
    unit = render("keepalived", "address.service.j2", host="lb-1", keepalived_interface="eth0")
    assert "--name flotilla-lab-edge" in unit
    assert "--peers 10.77.2.2\n" in unit


def test_adverts_go_to_the_other_load_balancers_only(configuration: str) -> None:
    block = re.search(r"unicast_peer \{([^}]*)\}", configuration)
    assert block
    peers = block[1].split()
    assert peers == ["10.77.2.1"]
    assert "unicast_src_ip 10.77.2.2" in configuration


def test_a_returning_host_takes_nothing_from_a_working_master(configuration: str) -> None:
    words = configuration.split()
    assert "nopreempt" in words
    assert words[words.index("state") + 1] == "BACKUP"  # nopreempt is ignored for MASTER


def test_no_two_load_balancers_have_the_same_priority(render: Render) -> None:
    texts = [
        render("keepalived", "keepalived.conf.j2", host=host, keepalived_interface="eth0")
        for host in ("lb-1", "lb-2")
    ]
    priorities = [re.findall(r"^    priority (\d+)$", text, re.MULTILINE) for text in texts]
    assert priorities == [["200"], ["190"]]


def keepalived_version() -> tuple[int, ...]:
    """As ``keepalived --version`` says on its first line; () without one."""
    path = shutil.which("keepalived", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        return ()
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"v(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()


def test_keepalived_accepts_the_configuration(
    configuration: str, checked_by: Callable[..., Any]
) -> None:
    here = sorted(path.name for path in Path("/sys/class/net").iterdir() if path.name != "lo")
    if not here:
        pytest.skip("keepalived's check wants an interface other than lo")
    if keepalived_version() < (2, 3):
        pytest.skip("the hosts' keepalived is 2.3 or later; this machine's is older or missing")
    text = configuration.replace("interface eth0", f"interface {here[-1]}")
    result = checked_by(text, "keepalived", "--config-test", "--use-file=%s")
    assert result.returncode == 0, result.stderr


def test_events_about_other_instances_are_not_ours() -> None:
    lines = 'INSTANCE "inner" MASTER 100\nGROUP "edge" MASTER 0\nINSTANCE "edge" BACKUP 200\n'
    assert edge.parse_events(lines) == ["BACKUP"]


@pytest.mark.parametrize(
    ("events", "claims"),
    [
        (["MASTER"], True),
        (["BACKUP", "MASTER"], True),
        (["MASTER", "BACKUP"], False),
        (["MASTER", "MASTER_RX_LOWER_PRI"], True),
        (["MASTER_RX_LOWER_PRI"], False),  # it was the master before: look first
        (["MASTER_RX_LOWER_PRI", "BACKUP"], False),
        (["MASTER", "FAULT"], False),
        (["MASTER_PRIORITY"], False),
        ([], False),
    ],
)
def test_only_the_last_word_counts(events: list[str], claims: bool) -> None:
    assert edge.wants_claim(events) is claims


states = st.sampled_from([*edge.STATES.values(), "STOP", "UNKNOWN", ""])


@given(vrrp=states, mine=st.booleans(), was_mine=st.booleans(), cut_off=st.booleans())
def test_nobody_but_a_master_claims(vrrp: str, mine: bool, was_mine: bool, cut_off: bool) -> None:
    owner = "i-me" if mine else "i-other"
    claims, sentence = edge.verdict(vrrp, owner, "i-me", was_mine=was_mine, cut_off=cut_off)
    assert not claims or (vrrp == "MASTER" and not mine)
    assert sentence


def test_two_masters_that_cannot_hear_each_other_do_not_fight() -> None:
    # Both became master and claimed once; the later claim won.
    loser = edge.verdict("MASTER", "i-2", "i-1", was_mine=True, cut_off=True)
    winner = edge.verdict("MASTER", "i-2", "i-2", was_mine=True, cut_off=False)
    assert not loser[0]
    assert not winner[0]
    assert loser[1] == "master, cut off from i-2, which took the address and serves"


@pytest.mark.parametrize(
    ("was_mine", "cut_off"),
    [
        (False, True),  # its owner is dead and our first claim failed: try again
        (True, False),  # moved by hand, or kept by a host that is not the master any more
        (False, False),
    ],
)
def test_a_master_that_sees_no_split_takes_the_address(was_mine: bool, cut_off: bool) -> None:
    assert edge.verdict("MASTER", "i-2", "i-1", was_mine=was_mine, cut_off=cut_off)[0]


def test_the_state_is_read_from_both_forms_of_the_dump() -> None:
    instance = {"data": {"iname": "edge", "state": 2}}
    assert edge.parse_state(json.dumps([instance])) == "MASTER"
    assert edge.parse_state(json.dumps({"vrrp": [instance]})) == "MASTER"
    assert edge.parse_state('[{"data": {"iname": "edge", "st') == "UNKNOWN"
    assert edge.parse_state("[]") == "UNKNOWN"


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("ec2")


@pytest.fixture
def pair(ec2: Any) -> tuple[str, str]:
    """Two instances and an Elastic IP tagged edge that neither has."""
    image = ec2.register_image(Name="any")["ImageId"]
    made = ec2.run_instances(ImageId=image, MinCount=2, MaxCount=2)["Instances"]
    tags = [{"ResourceType": "elastic-ip", "Tags": [{"Key": "Name", "Value": "edge"}]}]
    ec2.allocate_address(Domain="vpc", TagSpecifications=tags)
    return made[0]["InstanceId"], made[1]["InstanceId"]


def claims(me: str, *, master: Callable[[], bool] = lambda: True) -> tuple[Any, str]:
    clock = Clock()
    addresses = edge.Ec2Addresses("edge", me)
    known = addresses.read()
    return edge.claim(addresses, known, me, still_master=master, clock=clock, sleep=clock.sleep)


def owner(ec2: Any) -> str:
    found = ec2.describe_addresses(Filters=[{"Name": "tag:Name", "Values": ["edge"]}])["Addresses"]
    return str(found[0].get("InstanceId", ""))


def test_a_claim_takes_the_address_from_whoever_has_it(ec2: Any, pair: tuple[str, str]) -> None:
    claims(pair[0])
    assert owner(ec2) == pair[0]
    address, sentence = claims(pair[1])
    assert owner(ec2) == pair[1] == address.owner
    assert sentence.startswith(f"claimed {address.public_ip} in ")


def test_losing_the_role_ends_a_claim_before_it_starts(ec2: Any, pair: tuple[str, str]) -> None:
    claims(pair[0])
    _, sentence = claims(pair[1], master=lambda: False)
    assert owner(ec2) == pair[0]
    assert "no longer the master" in sentence


def test_a_claim_overwritten_in_the_same_second_is_made_again(
    ec2: Any, pair: tuple[str, str]
) -> None:
    asked = 0

    def master_while_the_other_claims() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:  # after our first associate and read, before the read that would confirm it
            edge.Ec2Addresses("edge", pair[0]).associate(claims_id)
        return True

    claims_id = edge.Ec2Addresses("edge", pair[0]).read().allocation_id
    claims(pair[1], master=master_while_the_other_claims)
    assert owner(ec2) == pair[1]


def test_an_address_made_anew_is_claimed_by_its_new_id(ec2: Any, pair: tuple[str, str]) -> None:
    clock = Clock()
    gone = edge.Address("eipalloc-00000000", "127.77.0.1", "")
    addresses = edge.Ec2Addresses("edge", pair[0])
    _, sentence = edge.claim(
        addresses, gone, pair[0], still_master=lambda: True, clock=clock, sleep=clock.sleep
    )
    assert sentence.startswith("claimed")
    assert owner(ec2) == pair[0]


def test_an_api_that_never_agrees_ends_in_a_sentence(ec2: Any, pair: tuple[str, str]) -> None:
    clock = Clock()
    addresses = edge.Ec2Addresses("edge", pair[0])
    known = addresses.read()
    ec2.release_address(AllocationId=known.allocation_id)
    _, sentence = edge.claim(
        addresses, known, pair[0], still_master=lambda: True, clock=clock, sleep=clock.sleep
    )
    assert sentence.startswith(f"could not claim {known.public_ip} in 30 s: ")


def test_two_addresses_of_one_name_are_not_guessed_between(ec2: Any, pair: tuple[str, str]) -> None:
    tags = [{"ResourceType": "elastic-ip", "Tags": [{"Key": "Name", "Value": "edge"}]}]
    ec2.allocate_address(Domain="vpc", TagSpecifications=tags)
    with pytest.raises(LookupError, match="2 Elastic IPs have the tag Name=edge"):
        edge.Ec2Addresses("edge", pair[0]).read()


def test_a_second_address_of_the_name_does_not_stop_a_claim(
    ec2: Any, pair: tuple[str, str]
) -> None:
    addresses = edge.Ec2Addresses("edge", pair[0])
    served = addresses.read()
    tags = [{"ResourceType": "elastic-ip", "Tags": [{"Key": "Name", "Value": "edge"}]}]
    ec2.allocate_address(Domain="vpc", TagSpecifications=tags)
    clock = Clock()
    _, sentence = edge.claim(
        addresses, served, pair[0], still_master=lambda: True, clock=clock, sleep=clock.sleep
    )
    assert sentence.startswith(f"claimed {served.public_ip} in ")


class Adverts:
    """Stands for a keepalived that is the master and hears a lower one, ``each`` seconds apart."""

    def __init__(self, clock: Clock, each: float, until: float) -> None:
        self.clock, self.each, self.until = clock, each, until
        self.next = each

    def events(self, timeout: float) -> list[str]:
        if self.next > min(self.clock.now + timeout, self.until):
            self.clock.sleep(timeout)
            return []
        self.clock.now = max(self.clock.now, self.next)
        self.next += self.each
        return [edge.HEARD_LOWER]

    def state(self) -> str:
        return "MASTER"


def test_a_lower_master_that_does_not_hear_us_costs_one_claim_and_a_look_a_second(
    ec2: Any, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    calls: list[str] = []

    class Counted(edge.Ec2Addresses):  # type: ignore[misc, name-defined]
        def read(self) -> Any:
            calls.append("read")
            return super().read()

        def associate(self, allocation_id: str) -> None:
            calls.append("associate")
            super().associate(allocation_id)

    # We had the address; the other one took it while they did not hear each other, and its HAProxy
    # does not answer us.
    claims(pair[1])
    at = edge.Ec2Addresses("edge", pair[0]).read().leads_to
    assert at
    monkeypatch.setattr(edge, "is_reachable", lambda _: False)
    clock = Clock()
    keeper = edge.Keeper(
        Counted("edge", pair[0]),
        Adverts(clock, each=0.25, until=20.0),
        pair[0],
        frozenset({at}),
        clock=clock,
        sleep=clock.sleep,
    )
    keeper._was_mine = True
    while clock.now < 2.0:
        keeper.turn(5.0)
    assert owner(ec2) == pair[0]
    while clock.now < 20.0:
        keeper.turn(5.0)
    assert calls.count("associate") == 1
    assert calls.count("read") <= 20 + edge.CONFIRMATIONS + 2


class Silent:
    """Stands for a keepalived that is the master and hears nobody."""

    def events(self, _: float) -> list[str]:
        return []

    def state(self) -> str:
        return "MASTER"


def test_an_owner_that_is_cut_off_keeps_the_address_for_as_long_as_it_runs(
    ec2: Any, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    monkeypatch.setattr(edge, "is_reachable", lambda _: False)
    claims(pair[1])
    addresses = edge.Ec2Addresses("edge", pair[0])
    clock = Clock()
    peers = frozenset({addresses.read().leads_to})
    keeper = edge.Keeper(addresses, Silent(), pair[0], peers, clock=clock, sleep=clock.sleep)
    keeper._was_mine = True
    keeper.turn(5.0)
    assert owner(ec2) == pair[1], "it serves on the other side of the split"
    assert taken_off(run) == edge.YIELDING, "when the split heals it stays there"
    ec2.stop_instances(InstanceIds=[pair[1]], Force=True)
    keeper.turn(5.0)
    assert owner(ec2) == pair[0]
    assert taken_off(run) == 0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the service writes."""
    monkeypatch.setattr(edge, "OUR_STATE", tmp_path / "state.json")
    monkeypatch.setattr(edge, "YIELDS", tmp_path / "yields")
    return tmp_path


def taken_off(run: Path) -> int:
    """How much keepalived takes off our priority."""
    path = run / "yields"
    return int(path.read_text()) if path.exists() else 0


class Said:
    """Stands for a keepalived that says of itself what it is told to."""

    def __init__(self, state: str) -> None:
        self.now = state
        self.next: list[str] = []

    def events(self, _: float) -> list[str]:
        events, self.next = self.next, []
        return events

    def state(self) -> str:
        return self.now


class Lost(edge.Ec2Addresses):  # type: ignore[misc, name-defined]
    """EC2, which can be out of reach."""

    is_lost = False

    def read(self) -> Any:
        if self.is_lost:
            raise OSError("timed out")
        return super().read()

    def associate(self, allocation_id: str) -> None:
        if self.is_lost:
            raise OSError("timed out")
        super().associate(allocation_id)


def turned(keeper: Any) -> None:
    """A turn as ``main`` takes it."""
    try:
        keeper.turn(5.0)
    except OSError as error:
        keeper.failed(error)


def kept(addresses: Any, said: Said, me: str) -> Any:
    clock = Clock()
    peers = frozenset({"10.0.0.2"})
    return edge.Keeper(addresses, said, me, peers, clock=clock, sleep=clock.sleep)


def test_who_was_cut_off_loses_when_the_split_heals(
    ec2: Any, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    claims(pair[0])
    addresses, said = Lost("edge", pair[0]), Said("MASTER")
    keeper = kept(addresses, said, pair[0])
    turned(keeper)
    assert taken_off(run) == 0
    addresses.is_lost = True
    monkeypatch.setattr(edge, "is_reachable", lambda _: True)
    turned(keeper)
    assert taken_off(run) == 0, "EC2 is away for everybody"
    monkeypatch.setattr(edge, "is_reachable", lambda _: False)
    turned(keeper)
    assert taken_off(run) == edge.YIELDING
    # Healed: the other one took the address meanwhile, and is the master now.
    claims(pair[1])
    addresses.is_lost, said.now = False, "BACKUP"
    turned(keeper)
    assert taken_off(run) == 0
    assert owner(ec2) == pair[1]


@pytest.mark.parametrize("became", ["", "MASTER"])
def test_who_looks_in_the_moment_that_the_split_heals_listens_before_it_claims(
    ec2: Any, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run: Path, became: str
) -> None:
    claims(pair[1])
    addresses, said = Lost("edge", pair[0]), Said("MASTER")
    keeper = kept(addresses, said, pair[0])
    keeper._was_mine = True
    addresses.is_lost = True
    monkeypatch.setattr(edge, "is_reachable", lambda _: False)

    def healed(seconds: float) -> None:
        addresses.is_lost = False
        monkeypatch.setattr(edge, "is_reachable", lambda _: True)
        if seconds >= edge.SETTLE_SECONDS:  # the other master's adverts are heard by then
            said.next, said.now = ["BACKUP"], "BACKUP"

    keeper._sleep = healed
    said.next = [became] if became else []
    turned(keeper)
    if not became:
        healed(0)
        turned(keeper)
    assert owner(ec2) == pair[1]
    turned(keeper)
    assert owner(ec2) == pair[1]
    assert taken_off(run) == 0


def test_a_backup_that_was_cut_off_and_became_master_loses_too(
    ec2: Any, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    claims(pair[1])
    addresses, said = Lost("edge", pair[0]), Said("BACKUP")
    keeper = kept(addresses, said, pair[0])
    turned(keeper)
    addresses.is_lost = True
    monkeypatch.setattr(edge, "is_reachable", lambda _: False)
    turned(keeper)
    assert taken_off(run) == 0, "a backup claims nothing"
    said.next, said.now = ["MASTER"], "MASTER"
    turned(keeper)
    assert taken_off(run) == edge.YIELDING
    assert owner(ec2) == pair[1]


def test_a_master_that_took_over_has_its_priority_once_ec2_agrees(
    ec2: Any, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    claims(pair[1])
    monkeypatch.setattr(edge, "is_reachable", lambda _: False)
    addresses, said = Lost("edge", pair[0]), Said("MASTER")
    keeper = kept(addresses, said, pair[0])
    addresses.is_lost = True
    turned(keeper)
    assert taken_off(run) == edge.YIELDING
    addresses.is_lost = False
    ec2.stop_instances(InstanceIds=[pair[1]], Force=True)
    turned(keeper)
    assert owner(ec2) == pair[0]
    assert taken_off(run) == 0


def test_a_load_balancer_that_refuses_a_connection_is_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setattr(edge, "PEER_PORT", free.getsockname()[1])
        assert edge.is_reachable("127.0.0.1")
    assert edge.is_reachable("127.0.0.1")

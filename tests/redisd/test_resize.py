"""What an operator types to give Redis larger hosts, on real servers and Sentinels under load.

The instances are moto's; stopping one stops its servers. What Ansible would write is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from redisd.group import HOSTS, Group
from redisd.operators import Hands
from redisd.test_move import Writer, there, writing

from flotilla import inventory
from flotilla.aws.session import client
from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.redis import operate, operate_resize
from flotilla.redis.operate import TOOL
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import until

pytestmark = pytest.mark.timeout(300)
OLD, NEW = "t3.small", "t3.medium"


class Killed(BaseException):
    """The operator's machine is gone."""


def yes(_: str) -> None:
    """Go on."""


class Power:
    """Three instances that are ``group``. ``did`` is what EC2 was told, ``on`` what happens once
    before it does what it is told; ``full`` are types for which it has no room.
    """

    def __init__(self, group: Group, hands: Hands, settings: Settings) -> None:
        self._group, self._hands, self._settings = group, hands, settings
        self.ec2 = client(settings, "ec2")
        self.did: list[str] = []
        self.on: dict[str, Any] = {}
        self.full: set[str] = set()
        self.ids = {name: self._run(name) for name in HOSTS}
        self._names = {key: name for name, key in self.ids.items()}

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for method, effect in (
            ("stop_instances", self._stop),
            ("start_instances", self._start),
            ("modify_instance_attribute", self._modify),
        ):
            monkeypatch.setattr(self.ec2, method, effect(getattr(self.ec2, method)))

    def seen(self) -> dict[str, tuple[str, str]]:
        pages = self.ec2.describe_instances(InstanceIds=list(self._names))["Reservations"]
        return {
            self._names[one["InstanceId"]]: (one["InstanceType"], one["State"]["Name"])
            for page in pages
            for one in page["Instances"]
        }

    def hosts(self) -> list[Host]:
        """Those that EC2 says are active, at the addresses of the group."""
        found = inventory.load(self._settings, refresh=True).by_role("redis")
        return [replace(host, private_ip=HOSTS[host.name]) for host in found]

    def _run(self, name: str) -> str:
        tags = {
            "Fleet": self._settings.name,
            "Env": self._settings.env,
            "ManagedBy": "flotilla",
            "Role": "redis",
            "Name": name,
        }
        made = self.ec2.run_instances(
            ImageId="ami-12345678",
            InstanceType=OLD,
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
            ],
        )
        return str(made["Instances"][0]["InstanceId"])

    def _told(self, verb: str, key: str) -> str:
        name = self._names[key]
        self.did.append(f"{name}: {verb}")
        if act := self.on.pop(f"{name}: {verb}", None):
            act()
        away = [n for n, process in self._group.servers.items() if not process.is_running]
        assert set(away) <= {name}, "never two hosts at once"
        return name

    def _stop(self, real: Any) -> Any:
        def stop(**request: Any) -> Any:
            name = self._told("stop", request["InstanceIds"][0])
            self._group.sentinels[name].stop()
            self._group.servers[name].stop()
            return real(**request)

        return stop

    def _modify(self, real: Any) -> Any:
        def modify(**request: Any) -> Any:
            name = self._told("modify", request["InstanceId"])
            # moto allows it, EC2 does not.
            assert self.seen()[name][1] == "stopped"
            return real(**request)

        return modify

    def _start(self, real: Any) -> Any:
        def start(**request: Any) -> Any:
            name = self._told("start", request["InstanceIds"][0])
            if self.seen()[name][0] in self.full:
                error = {"Code": "InsufficientInstanceCapacity", "Message": "no room"}
                raise ClientError({"Error": error}, "StartInstances")
            return real(**request)

        return start


@pytest.fixture
def wanted(settings: Settings) -> Settings:
    """Its Redis hosts are to be larger, and to hold more."""
    tier = settings.tiers.redis.model_copy(update={"type": NEW})
    return settings.model_copy(
        update={
            "tiers": settings.tiers.model_copy(update={"redis": tier}),
            "redis": settings.redis.model_copy(update={"maxmemory_mb": 256}),
        }
    )


@pytest.fixture
def power(group: Group, hands: Hands, wanted: Settings, monkeypatch: pytest.MonkeyPatch) -> Power:
    made = Power(group, hands, wanted)
    made.connect(monkeypatch)

    @contextmanager
    def opened(_: Settings, *, fresh: bool) -> Iterator[tuple[Hands, list[Host]]]:
        yield hands, made.hosts()

    monkeypatch.setattr(operate_resize, "opened", opened)
    return made


@pytest.fixture
def resize(hands: Hands, wanted: Settings, power: Power) -> Any:
    """The command, and a playbook that writes one setting and has it applied."""

    def playbook(settings: Settings, hosts: Sequence[Host], _: Any) -> None:
        for host in hosts:
            owned = hands.home(host.name) / "flotilla.conf"
            lines = owned.read_text().splitlines()
            kept = [line for line in lines if not line.startswith("maxmemory ")]
            kept.append(f"maxmemory {settings.redis.maxmemory_mb}mb")
            owned.write_text("\n".join(kept) + "\n")
            hands.run(host, f"{TOOL} apply", check=False)

    def command(to: str | None = NEW, *, confirmed: Any = yes, of: Settings = wanted) -> Any:
        return operate_resize.resize(
            of, to, confirmed=confirmed, said=yes, configure_hosts=playbook
        )

    return command


def maxmemory(group: Group) -> set[int]:
    return {int(group.client(name).config_get("maxmemory")["maxmemory"]) >> 20 for name in HOSTS}


def goes_on(writer: Writer) -> None:
    count = len(writer.acked)
    until(lambda: len(writer.acked) > count + 20, seconds=10)


def fill(group: Group, share: float) -> None:
    """Sessions, until that share of its 64 MiB is in use, without what replicas wait for."""
    app, client = group.app(group.primary()), group.client(group.primary())
    count = 0
    while True:
        until(lambda: client.info("memory")["mem_clients_slaves"] < 1 << 16, seconds=5)
        if client.info("memory")["used_memory"] > share * (64 << 20):
            return
        app.mset({f"session:{number}": "x" * 65536 for number in range(count, count + 8)})
        count += 8


def test_every_host_is_made_larger_the_primary_last_and_no_session_or_write_is_lost(
    group: Group, power: Power, resize: Any, wanted: Settings
) -> None:
    fill(group, 0.92)
    sessions = group.app("redis-1").dbsize()
    assert any("% of its memory is in use" in one for one in operate.seen(wanted)["problems"])
    plans: list[str] = []
    with writing(group) as writer:
        done = resize(confirmed=plans.append)
        goes_on(writer)
    assert [line.partition(":")[0] for line in power.did if "stop" in line] == [
        "redis-2",
        "redis-3",
        "redis-1",
    ]
    assert "redis-1: move its role, then stop, t3.small -> t3.medium, start" in plans[0]
    assert set(power.seen().values()) == {(NEW, "running")}
    assert maxmemory(group) == {256}
    assert done["hosts"]["redis-1"] == "t3.small -> t3.medium"
    assert [move["old"] for move in done["moves"]] == ["redis-1"]
    assert set(writer.acked) <= there(group)
    assert group.app(group.primary()).dbsize() >= sessions
    assert writer.gap < 10.0
    assert writer.most_offered == 1
    assert operate.seen(wanted)["problems"] == []
    assert not resize()["changed"]


@pytest.mark.parametrize("moment", ["redis-3: modify", "redis-1: start"])
def test_killed_at_any_step_the_same_command_goes_on(
    group: Group, power: Power, resize: Any, wanted: Settings, moment: str
) -> None:
    def die() -> None:
        raise Killed

    power.on[moment] = die
    with writing(group) as writer:
        with pytest.raises(Killed):
            resize()
        plans: list[str] = []
        resize(confirmed=plans.append)
        goes_on(writer)
    assert f"{moment.partition(':')[0]}: start as t3.medium" in plans[0]
    assert set(power.seen().values()) == {(NEW, "running")}
    assert maxmemory(group) == {256}
    assert set(writer.acked) <= there(group)
    assert operate.seen(wanted)["problems"] == []


def test_one_that_was_started_and_not_waited_for_is_waited_for(
    group: Group, power: Power, resize: Any, hands: Hands
) -> None:
    def die() -> None:
        raise Killed

    hands.on["redis-2: start"] = die
    with pytest.raises(BaseException):  # noqa: B017
        resize()
    assert power.seen()["redis-2"] == (NEW, "running")
    if group.servers["redis-2"].is_running:
        group.servers["redis-2"].stop()
    plans: list[str] = []
    resize(confirmed=plans.append)
    assert "redis-2: wait until all is well" in plans[0]
    assert maxmemory(group) == {256}


def test_without_room_for_the_type_the_host_runs_as_before_and_the_rest_is_left(
    group: Group, power: Power, resize: Any
) -> None:
    power.full.add(NEW)
    with writing(group) as writer:
        with pytest.raises(HostFailed, match=r"did not become t3\.medium") as failed:
            resize()
        goes_on(writer)
    assert "It runs as t3.small again" in failed.value.untouched
    assert "The hosts after redis-2 were left as they are" in failed.value.untouched
    assert set(power.seen().values()) == {(OLD, "running")}
    assert group.primary() == "redis-1"


@pytest.mark.parametrize(
    ("to", "error", "words"),
    [
        ("t9.small", BadOption, "no instance type 't9.small'"),
        ("t3.large", Refused, "fleet.yml says t3.medium, not t3.large"),
    ],
)
def test_a_type_that_fleet_yml_does_not_say_changes_nothing(
    power: Power, resize: Any, to: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        resize(to)
    assert power.did == []


def test_a_type_too_small_for_the_data_is_refused_before_anything_is_touched(
    group: Group, power: Power, resize: Any, wanted: Settings
) -> None:
    fill(group, 0.5)
    smaller = wanted.model_copy(
        update={"redis": wanted.redis.model_copy(update={"maxmemory_mb": 32})}
    )
    with pytest.raises(Refused, match=r"maxmemory_mb is 32: redis-\d uses 3") as refused:
        resize(of=smaller)
    assert refused.value.untouched == "Nothing was changed"
    assert power.did == []
    assert maxmemory(group) == {64}


def test_with_a_sentinel_away_no_host_is_touched(group: Group, power: Power, resize: Any) -> None:
    group.sentinels["redis-3"].end()
    with pytest.raises(Refused, match=r"redis-3.*Sentinel"):
        resize()
    assert power.did == []

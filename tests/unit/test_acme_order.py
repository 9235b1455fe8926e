"""What an authority's refusals become; orders that succeed are in tests/haproxyd/test_acme.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import boto3
import pytest
from moto.server import ThreadedMotoServer

pytest.importorskip("acme", reason="the ACME library is not installed")

from flotilla.aws.lean import Api
from flotilla.aws.signature import Keys
from flotilla.certificate.order import Authority, LimitedError, Orderer, Place
from flotilla.certificate.service import Fleet, Service
from flotilla.certificate.store import Shared
from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.rules.acme import Attempts, Request, Tokens
from flotilla.wait import until


class Authoritative(BaseHTTPRequestHandler):
    """Has a directory and nonces, and refuses every new account."""

    refusal: ClassVar[tuple[int, str]] = (429, "rateLimited")

    def do_GET(self) -> None:
        here = f"http://{self.headers['Host']}"
        names = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")
        self._say(200, {name: f"{here}/{name}" for name in names})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        status, kind = self.refusal
        problem = f"urn:ietf:params:acme:error:{kind}"
        self._say(status, {"type": problem, "detail": "not now", "status": status})

    def _say(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Replay-Nonce", "bm9uY2U")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def directory() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Authoritative)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dir"
    server.shutdown()
    server.server_close()


class Memory:
    """What SSM would keep."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.is_down = False

    def read(self) -> Shared:
        self._answer()
        found = self.kept.get
        return Shared(
            found("certificate", ""),
            found("acme/tokens", Tokens({}, 0.0)),
            found("acme/attempts", Attempts()),
            found("acme/request", Request()),
        )

    def secret(self, name: str) -> str:
        return str(self.kept.get(name, ""))

    def put(self, name: str, value: Any) -> None:
        self._answer()
        self.kept[name] = value

    def _answer(self) -> None:
        if self.is_down:
            raise Unreachable("ssm does not answer")


def ordering(store: Any, directory: str) -> Orderer:
    authority = Authority(directory, "ops@shop.example")
    return Orderer(store, authority, "shop.example", lambda: [Place("lb-1", "127.0.0.1")])


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [((429, "rateLimited"), LimitedError), ((403, "unauthorized"), HostFailed)],
)
def test_what_an_authority_says_is_told(
    directory: str, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, str], kind: type
) -> None:
    monkeypatch.setattr(Authoritative, "refusal", refusal)
    with pytest.raises(HostFailed, match=f"{refusal[1]}: not now") as refused:
        ordering(Memory(), directory).run()
    assert type(refused.value) is kind


def test_something_else_at_that_address_is_no_authority(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Authoritative, "do_GET", lambda self: self._say(200, {"hello": 1}))
    with pytest.raises(HostFailed, match="/dir: KeyError"):
        ordering(Memory(), directory).run()


class Scene:
    """A service on a host that has the address, with an order that does as it is told."""

    def __init__(self, folder: Path) -> None:
        self.store, self.now, self.runs, self.owns = Memory(), 1_800_000_000.0, 0, True
        self.fails: BaseException | None = None
        self.followed: list[Shared] = []
        follower: Any = SimpleNamespace(follow=self._follow)
        self.report = folder / "report.json"
        store: Any = self.store
        self.service = Service(
            store,
            follower,
            SimpleNamespace(run=self._order),
            "shop.example",
            self.report,
            is_owner=self._is_owner,
            now=lambda: self.now,
        )

    def turn(self) -> dict[str, Any]:
        """One turn, and the end of the order that it began; what is reported."""
        self.service.turn()
        until(lambda: not self.service.is_ordering, seconds=5, every=0.001)
        found: dict[str, Any] = json.loads(self.report.read_text())
        return found

    def _order(self) -> Any:
        self.runs += 1
        if self.fails:
            raise self.fails
        return SimpleNamespace(serial="1A", issuer="CN=an authority")

    def _follow(self, shared: Shared, _: float) -> str:
        self.followed.append(shared)
        return ""

    def _is_owner(self) -> bool:
        if self.owns is None:
            raise Unreachable("ec2 does not answer")
        return self.owns


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize(
    ("fails", "pause"),
    [
        (HostFailed("dns: no such name"), 3600),
        (LimitedError("rateLimited: not now"), 86400),
        (RuntimeError("what nobody foresaw"), 3600),
    ],
)
def test_an_order_that_failed_is_not_repeated_before_its_time(
    scene: Scene, fails: Exception, pause: float
) -> None:
    scene.fails = fails
    for _ in range(50):
        scene.turn()
    assert scene.runs == 1
    assert str(fails).rstrip(".") in scene.turn()["failed"]
    scene.now += pause - 1
    scene.turn()
    assert scene.runs == 1
    scene.now += 1
    scene.turn()
    assert scene.runs == 2


def test_only_where_the_address_is_anything_is_ordered(scene: Scene) -> None:
    scene.owns = False
    scene.turn()
    assert scene.runs == 0
    scene.owns = None
    assert "ec2 does not answer" in scene.turn()["trouble"]
    assert scene.runs == 0
    assert len(scene.followed) == 2, "what is stored is served all the same"


def test_nothing_is_ordered_that_could_not_be_written_down(scene: Scene) -> None:
    asked = scene.store.put

    def put(name: str, value: Any) -> None:
        if name == "acme/attempts":
            raise FlotillaError("ssm takes nothing")
        asked(name, value)

    scene.store.put = put  # type: ignore[method-assign]
    for _ in range(3):
        assert "ssm takes nothing" in scene.turn()["trouble"]
    assert scene.runs == 0


def test_without_ssm_what_was_read_last_is_served_on(scene: Scene) -> None:
    scene.owns = False
    scene.turn()
    scene.store.is_down = True
    assert "ssm does not answer" in scene.turn()["trouble"]
    assert scene.followed[0] == scene.followed[1]


def test_who_has_the_address_is_ec2s_word() -> None:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url, keys = (
            f"http://{host}:{port}",
            {"aws_access_key_id": "a", "aws_secret_access_key": "b"},
        )
        ec2 = boto3.client("ec2", endpoint_url=url, region_name="eu-central-1", **keys)
        image = ec2.register_image(Name="the-image", RootDeviceName="/dev/sda1")["ImageId"]
        made = ec2.run_instances(ImageId=image, MinCount=2, MaxCount=2)["Instances"]
        mine, other = (one["InstanceId"] for one in made)
        tags = [{"Key": "Name", "Value": "shop-blue-edge"}]
        address = ec2.allocate_address(
            TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": tags}]
        )["AllocationId"]
        api = Api("eu-central-1", lambda: Keys("a", "b"), endpoint_url=url, seconds=20.0)
        role: Any = SimpleNamespace(text=lambda _: mine)
        fleet = Fleet(api, role, "shop-blue-edge", Path("haproxy.cfg"), is_proxied=False)
        assert not fleet.is_owner(), "it is with nobody"
        for instance in (other, mine):
            ec2.associate_address(
                AllocationId=address, InstanceId=instance, AllowReassociation=True
            )
            assert fleet.is_owner() is (instance == mine)
    finally:
        server.stop()


def test_the_places_are_this_host_and_those_of_haproxys_configuration(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("backend lb_peers\n    server lb-2 10.0.0.2:8404\n\nbackend app\n")
    api: Any = None
    fleet = Fleet(api, api, "shop-blue-edge", config, is_proxied=True)
    first, second = fleet.places()
    assert (first.address, first.port, first.is_proxied) == ("127.0.0.1", 80, False)
    assert (second.address, second.port, second.is_proxied) == ("10.0.0.2", 80, True)

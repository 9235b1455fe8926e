"""A host configures itself at its first boot: the program of roles/join, on files and answers."""

from __future__ import annotations

import grp
import hashlib
import importlib.util
import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from flotilla.rules import join as rules
from flotilla.rules.placement import names

REGION = "eu-central-1"
SOURCE = Path(__file__).resolve().parents[2] / "roles/join/files/join.py"
ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
TAGS = {
    "tags/instance/Fleet": "shop",
    "tags/instance/Env": "blue",
    "tags/instance/Role": "app",
    "mac": "02:00",
    "instance-id": "i-1",
    "local-ipv4": "10.0.0.4",
    "network/interfaces/macs/02:00/vpc-id": "vpc-1",
}


def load() -> Any:
    spec = importlib.util.spec_from_file_location("flotilla_join", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["flotilla_join"] = module
    spec.loader.exec_module(module)
    return module


tool = load()


def test_a_host_learns_who_it_is_from_its_metadata():
    me = tool.identity(TAGS.get)
    assert (me.instance_id, me.address, me.vpc_id, me.role) == ("i-1", "10.0.0.4", "vpc-1", "app")


@pytest.mark.parametrize("tag", ["Fleet", "Env", "Role"])
def test_an_instance_without_our_tags_is_left_alone(tag: str):
    known = TAGS | {f"tags/instance/{tag}": ""}
    with pytest.raises(tool.NotOursError, match=tag):
        tool.identity(known.get)


NAMES = st.sampled_from(["", "app-1", "app-2", "app-3", "app-12", "app-0", "web-1", "app-x"])
HOSTS = st.lists(st.tuples(st.integers(0, 3), NAMES), min_size=1, max_size=8)


@given(HOSTS)
def test_hosts_take_the_names_that_provision_would_give_them(hosts):
    peers = [
        tool.Peer(f"2026-01-01T00:00:0{at}", f"i-{n}", name) for n, (at, name) in enumerate(hosts)
    ]
    order = [p.instance_id for p in sorted(peers, key=lambda p: (p.launched_at, p.instance_id))]
    tags = {peer.instance_id: peer.name for peer in peers}
    theirs = tags | names("app", tags, order)
    ours = {me: tool.wanted_name("app", me, peers) for me in order}
    assert ours == theirs
    assert len(set(ours.values())) == len(ours), "no two hosts have one name"


class Tier:
    """EC2 with tags that are seen a read late, by hosts that all start at once."""

    def __init__(self, *ids: str) -> None:
        self.tags = dict.fromkeys(ids, "")
        self.shown = dict(self.tags)

    def peers(self) -> list[Any]:
        shown, self.shown = self.shown, dict(self.tags)
        return [tool.Peer("2026-01-01", one, name) for one, name in shown.items()]

    def claim(self, me: str) -> str:
        clock = iter(range(1000))
        return tool.claimed_name(
            "app",
            me,
            self.peers,
            lambda name: self.tags.update({me: name}),
            sleep=lambda _: None,
            clock=lambda: next(clock),
        )


def test_a_name_is_taken_once_ec2_shows_it():
    tier = Tier("i-1", "i-2")
    tier.tags["i-1"] = "app-1"
    assert tier.claim("i-2") == "app-2"
    assert tier.tags == {"i-1": "app-1", "i-2": "app-2"}


def test_a_host_that_has_its_name_writes_no_tag():
    tier = Tier("i-1")
    tier.tags["i-1"] = tier.shown["i-1"] = "app-7"
    assert tool.claimed_name(
        "app", "i-1", tier.peers, lambda _: pytest.fail("it has a name"), sleep=lambda _: None
    )


def test_a_host_that_ec2_does_not_show_says_so():
    with pytest.raises(tool.NotYetError, match="did not show a name"):
        Tier("i-1").claim("i-9")


def test_secrets_are_filled_in_as_json_writes_them():
    text = 'PASSWORD="%%mysql/app_password%%"\n'
    filled = tool.filled(text, {"mysql/app_password": 'a"b\\c'}, quoted=True)
    assert json.loads(filled.partition("=")[2]) == 'a"b\\c'


def test_a_value_that_looks_like_a_mark_is_not_read_again():
    assert tool.filled("%%name%%", {"name": "%%address%%"}, quoted=False) == "%%address%%"


def test_a_mark_without_a_value_stops_it():
    with pytest.raises(tool.NotYetError, match="redis/app_password"):
        tool.filled("%%redis/app_password%%", {"name": "app-1"}, quoted=False)


def test_both_ends_know_the_same_marks():
    assert tool.MARK.pattern == rules.MARK.pattern


def test_what_was_published_is_taken_only_with_its_checksum():
    body = rules.body({"version": "1"})
    assert tool.checked(body, hashlib.sha256(body).hexdigest(), "it") == {"version": "1"}
    with pytest.raises(tool.NotYetError, match="was published as"):
        tool.checked(body + b" ", hashlib.sha256(body).hexdigest(), "it")


def file(**more: Any) -> dict[str, Any]:
    return {"path": "/etc/a/b", "mode": "0640", **ME, **more}


def test_a_file_is_put_in_place_with_its_rights_and_only_when_it_differs(tmp_path: Path):
    assert tool.install(file(), "one\n", tmp_path)
    placed = tmp_path / "etc/a/b"
    assert (placed.read_text(), placed.stat().st_mode & 0o777) == ("one\n", 0o640)
    assert not tool.install(file(), "one\n", tmp_path)
    placed.chmod(0o644)
    assert tool.install(file(), "one\n", tmp_path), "rights count"
    assert tool.install(file(), "two\n", tmp_path)
    assert [left.name for left in placed.parent.iterdir()] == ["b"]


def test_a_file_that_its_program_refuses_leaves_the_old_one(tmp_path: Path):
    tool.install(file(), "good\n", tmp_path)
    refuses = file(check=["grep", "-q", "good", "%s"])
    with pytest.raises(tool.NotYetError, match="grep -q good"):
        tool.install(refuses, "bad\n", tmp_path)
    assert (tmp_path / "etc/a/b").read_text() == "good\n"
    assert [left.name for left in (tmp_path / "etc/a").iterdir()] == ["b"]


def test_a_bundle_with_a_mark_that_nobody_fills_in_is_not_published():
    with pytest.raises(ValueError, match="nobody fills in"):
        rules.bundle(
            [{"path": "/etc/x"}],
            ["%%other/secret%%"],
            vpc_id="v",
            parameters={},
            enable=[],
            start=[],
        )


class Bucket:
    """What is published; the pointer moves on when it is read."""

    def __init__(self, *pointers: dict[str, str] | None) -> None:
        self.pointers = list(pointers)

    def published(self, name: str) -> dict[str, str] | None:
        assert name == "release"
        return self.pointers.pop(0) if len(self.pointers) > 1 else self.pointers[0]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    told: list[list[str]] = []

    def run(argv: list[str]) -> str:
        told.append(argv[1:])
        return json.dumps({"current": None, "active": False, "stale": False})

    monkeypatch.setattr(tool, "run", run)
    return told


def release(version: str) -> dict[str, str]:
    return {"version": version, "sha256": "0" * 64}


def test_the_release_that_is_current_is_staged_started_and_waited_for(ran):
    assert tool.serve(Bucket(release("1"))) == "serves 1"
    assert [argv[0] for argv in ran] == ["stage", "status", "switch", "wait"]


def test_a_deploy_that_ends_while_a_host_downloads_gives_it_the_new_release(ran):
    assert tool.serve(Bucket(release("1"), release("2"))) == "serves 2"
    assert ["switch", "1"] not in ran
    assert ["switch", "2"] in ran


def test_without_a_release_the_host_is_configured_and_says_so(ran):
    assert "no release" in tool.serve(Bucket(None))
    assert ran == []


# --- from the first boot to the end, on moto -----------------------------------------------------

SECRET = 'a"b'
BUCKET = "shop-blue-artifacts"


def published(name: str, document: dict[str, Any]) -> None:
    body = rules.body(document)
    boto3.client("s3", region_name=REGION).put_object(
        Bucket=BUCKET,
        Key=rules.key("app", name),
        Body=body,
        Metadata={"sha256": hashlib.sha256(body).hexdigest()},
    )


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A fleet with two named hosts and a new one; the metadata of the new one."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        ec2 = boto3.client("ec2")
        boto3.client("s3").create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        boto3.client("ssm").put_parameter(
            Name="/shop/blue/mysql/app_password", Value=SECRET, Type="SecureString"
        )
        tags = {"Fleet": "shop", "Env": "blue", "Role": "app"}
        for name in ("app-1", "app-3", ""):
            named = tags | ({"Name": name} if name else {})
            listed = [{"Key": key, "Value": value} for key, value in named.items()]
            made = ec2.run_instances(
                ImageId="ami-12c6146b",
                MinCount=1,
                MaxCount=1,
                TagSpecifications=[{"ResourceType": "instance", "Tags": listed}],
            )["Instances"][0]
        yield TAGS | {"instance-id": made["InstanceId"]}


def bundle_of(*files: dict[str, Any], vpc_id: str = "vpc-1") -> dict[str, Any]:
    return rules.bundle(
        files,
        [one.pop("content") for one in files],
        vpc_id=vpc_id,
        parameters={"mysql/app_password": "/shop/blue/mysql/app_password"},
        enable=["app.service"],
        start=["nginx.service"],
    )


def owned(bundle: dict[str, Any]) -> dict[str, Any]:
    """Files of whoever runs the test, who may not be root."""
    return bundle | {"files": [one | ME for one in bundle["files"]]}


@pytest.fixture
def host(ran: list[list[str]], cloud: dict[str, str], tmp_path: Path) -> Callable[[], str]:
    del ran

    def boot() -> str:
        return str(tool.join(cloud.get, tmp_path, lambda _: None))

    return boot


FILES = (
    {"path": "/etc/app/environment", "mode": "0640", "quoted": True,
     "content": 'PASSWORD="%%mysql/app_password%%"\n'},
    {"path": "/etc/hosts", "content": "%%address%% %%name%%\n"},
)  # fmt: skip


def test_a_new_host_takes_the_free_name_its_files_and_the_release(host, ran, tmp_path, cloud):
    published("bundle", owned(bundle_of(*(dict(one) for one in FILES))))
    published("release", release("7"))
    assert host() == "app-2 serves 7"
    assert (tmp_path / "etc/hosts").read_text() == "10.0.0.4 app-2\n"
    assert (tmp_path / "etc/app/environment").read_text() == 'PASSWORD="a\\"b"\n'
    assert ["set-hostname", "app-2"] in ran
    assert ["start", "nginx.service"] in ran
    assert ["switch", "7"] in ran
    found = boto3.client("ec2").describe_tags(
        Filters=[{"Name": "resource-id", "Values": [cloud["instance-id"]]}]
    )["Tags"]
    assert {"Name": "app-2"}.items() <= {one["Key"]: one["Value"] for one in found}.items()
    assert (tmp_path / tool.JOINED).exists()
    assert not (tmp_path / tool.BEGUN).exists()


def test_a_host_that_the_playbook_configured_is_left_alone(host, ran, tmp_path):
    (tmp_path / "etc/app").mkdir(parents=True)
    (tmp_path / "etc/app/environment").touch()
    with pytest.raises(tool.NotOursError, match="by the playbook"):
        host()
    assert ran == []


def test_a_host_whose_first_try_was_cut_off_goes_on(host, tmp_path):
    published("bundle", owned(bundle_of(*(dict(one) for one in FILES))))
    assert "no release" in host()
    (tmp_path / tool.BEGUN).touch()
    published("release", release("7"))
    assert host() == "app-2 serves 7"


def test_without_a_bundle_the_host_waits_for_the_playbook(host, ran):
    with pytest.raises(tool.NotOursError, match=r"fab fleet\.configure"):
        host()
    assert ran == []


def test_a_bundle_of_an_earlier_fleet_is_not_for_this_host(host, ran):
    published("bundle", owned(bundle_of(*(dict(one) for one in FILES), vpc_id="vpc-0")))
    with pytest.raises(tool.NotOursError, match="earlier fleet"):
        host()
    assert ran == []


def test_a_secret_that_is_missing_is_named_and_nothing_is_written(host, tmp_path):
    bundle = owned(bundle_of(*(dict(one) for one in FILES)))
    published("bundle", bundle | {"parameters": {"mysql/app_password": "/shop/blue/none"}})
    with pytest.raises(tool.NotYetError, match="/shop/blue/none"):
        host()
    assert not (tmp_path / "etc").exists()

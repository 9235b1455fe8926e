"""One list of hosts for every tool: names, groups, age, and what happens without the API."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from benchmarks.fake_ec2 import FakeEc2, Instance, fleet
from flotilla import config, environment, inventory
from flotilla.errors import BadOption, Refused, Unreachable
from flotilla.inventory import groups, store
from flotilla.inventory.collect import filters, snapshot
from flotilla.rules.hostnames import Tagged, named
from flotilla.settings import ROLES, Settings
from flotilla.snapshot import Snapshot

ROOT = environment.root()


@pytest.fixture
def api() -> Iterator[FakeEc2]:
    with FakeEc2(fleet(12)) as endpoint:
        yield endpoint


@pytest.fixture
def repo(tmp_path: Path, api: FakeEc2) -> Path:
    """A repository whose lab is at the fake endpoint, with credentials."""
    folder = tmp_path / "inventory" / "lab"
    shutil.copytree(ROOT / "inventory" / "lab", folder, symlinks=True)
    shutil.copy(ROOT / "inventory" / "ec2.py", tmp_path / "inventory" / "ec2.py")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    point(tmp_path, "http://127.0.0.1:4566", api.url)
    credentials = tmp_path / "var" / "lab" / "aws" / "credentials"
    credentials.parent.mkdir(parents=True)
    credentials.write_text("[lab]\naws_access_key_id = test\naws_secret_access_key = test\n")
    return tmp_path


def point(repo: Path, old: str, new: str) -> None:
    file = environment.fleet_file(repo, "lab")
    file.write_text(file.read_text().replace(old, new))


@pytest.fixture
def settings(repo: Path) -> Settings:
    return config.load("lab", root=repo)


# -- names ---------------------------------------------------------------------------------------


def test_a_unique_name_tag_is_the_name():
    names, problems = named([Tagged("i-1", "mysql", "mysql-2", scaled=False)], ROLES)
    assert names == {"i-1": ("mysql-2", 2)}
    assert problems == []


def test_hosts_of_a_scaling_group_that_share_a_name_get_the_end_of_their_id():
    both = [Tagged(f"i-00000000000aaaaa{n}", "app", "app-1", scaled=True) for n in (1, 2)]
    names, problems = named(both, ROLES)
    assert [n.name for n in names.values()] == ["app-aaaaa1", "app-aaaaa2"]
    assert problems == []


def test_two_hosts_of_one_name_are_named_and_neither_gets_it():
    both = [Tagged(f"i-0000000000000000{n}", "mysql", "mysql-1", scaled=False) for n in (1, 2)]
    names, problems = named(both, ROLES)
    assert "mysql-1" not in {n.name for n in names.values()}
    (problem,) = problems
    assert problem == (
        "2 instances have the Name tag mysql-1: i-00000000000000001, i-00000000000000002; "
        "terminate or rename all but one"
    )


def test_a_name_of_another_role_is_not_believed():
    names, _ = named([Tagged("i-0123456789abcdef0", "app", "mysql-1", scaled=False)], ROLES)
    assert names["i-0123456789abcdef0"] == ("app-bcdef0", None)


def test_an_unknown_role_is_a_problem_that_lists_the_roles():
    _, problems = named([Tagged("i-1", "web", "web-1", scaled=False)], ROLES)
    assert problems == ["i-1 has the Role tag 'web'; roles are bastion, lb, app, mysql, redis"]


@given(
    st.lists(
        st.builds(
            Tagged,
            st.text("0123456789abcdef", min_size=17, max_size=17).map("i-".__add__)
            | st.text("01", min_size=1, max_size=2).map(lambda t: f"i-{t:0>11}abcdef"),
            st.sampled_from([*ROLES, "", "web"]),
            st.sampled_from(["", "app", "app-1", "mysql-1", "app-01", "app-abcdef", "web-1"]),
            st.booleans(),
        ),
        unique_by=lambda one: one.instance_id,
        max_size=12,
    )
)
def test_every_instance_gets_a_name_and_no_two_the_same(instances):
    names, _ = named(instances, ROLES)
    assert set(names) == {one.instance_id for one in instances}
    assert len({given.name for given in names.values()}) == len(instances)
    claims = [(one.role, one.name) for one in instances]
    for one in instances:
        if names[one.instance_id].number is not None:
            assert names[one.instance_id].name == one.name
            assert claims.count((one.role, one.name)) == 1


# -- collecting ----------------------------------------------------------------------------------


def launch(tags: dict[str, str], ec2: Any, **more: Any) -> str:
    answer = ec2.run_instances(
        ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType="t3.small",
        TagSpecifications=[{
            "ResourceType": "instance",
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        }],
        **more,
    )  # fmt: skip
    return answer["Instances"][0]["InstanceId"]


OURS = {"Fleet": "flotilla", "Env": "lab", "ManagedBy": "flotilla", "Role": "app"}


def test_only_instances_of_this_fleet_and_environment_are_asked_for(settings):
    with mock_aws():
        ec2 = boto3.client("ec2", "eu-central-1")
        mine = launch(OURS | {"Name": "app-1"}, ec2)
        launch(OURS | {"Env": "production"}, ec2)
        launch({"Name": "app-2"}, ec2)
        launch(OURS | {"ManagedBy": "someone"}, ec2)
        gone = launch(OURS | {"Name": "app-3"}, ec2)
        ec2.terminate_instances(InstanceIds=[gone])
        stopped = launch(OURS | {"Name": "app-4"}, ec2)
        ec2.stop_instances(InstanceIds=[stopped])
        answer = ec2.describe_instances(Filters=filters(settings))
        found = [i["InstanceId"] for r in answer["Reservations"] for i in r["Instances"]]
    assert sorted(found) == sorted([mine, stopped])


def test_boto3s_answer_becomes_hosts(settings):
    with mock_aws():
        ec2 = boto3.client("ec2", "eu-central-1")
        launch(OURS | {"Name": "app-1"}, ec2, Placement={"AvailabilityZone": "eu-central-1b"})
        instances = ec2.describe_instances()["Reservations"][0]["Instances"]
    (host,) = snapshot(instances, now=7.0).hosts
    assert (host.name, host.role, host.number, host.zone) == ("app-1", "app", 1, "eu-central-1b")
    assert host.private_ip == instances[0]["PrivateIpAddress"]
    assert host.launched_at == instances[0]["LaunchTime"]
    assert host.is_active


def test_a_large_fleet_comes_a_thousand_hosts_a_page(settings):
    with FakeEc2(fleet(2_500)) as big:
        far = settings.model_copy(
            update={"aws": settings.aws.model_copy(update={"endpoint_url": big.url})}
        )
        found = inventory.collect(far, now=1.0)
        assert len({host.name for host in found.hosts}) == 2_500
        assert big.calls == {"DescribeInstances": 3}


def test_every_region_is_asked_once(repo, api):
    point(repo, "other_regions: []", "other_regions: [eu-west-1, eu-north-1]")
    inventory.collect(config.load("lab", root=repo), now=1.0)
    assert api.calls == {"DescribeInstances": 3}


# -- the snapshot --------------------------------------------------------------------------------


def test_what_is_stored_is_what_is_read(settings):
    kept = replace(inventory.collect(settings, now=5.0), problems=("one",))
    store.save(settings, kept)
    stored = store.read(settings)
    assert stored is not None
    assert stored.snapshot == kept
    assert stored.is_current


def test_the_file_is_one_json_object(settings):
    store.save(settings, inventory.collect(settings, now=5.0))
    whole = json.loads(store.path(settings).read_text())
    assert set(whole) == {"header", "ansible", "hosts"}
    assert json.loads(store.listing(settings)) == whole["ansible"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b'{"header":{"schema":99},\n', b"\xff\xfe\n\n\n", b"[]\n[]\n[]"]
)
def test_a_damaged_snapshot_counts_as_none(settings, content):
    store.path(settings).write_bytes(content)
    assert store.read(settings) is None
    assert len(inventory.load(settings, now=lambda: 9.0).hosts) == 12


def test_a_full_disk_leaves_the_snapshot_before_it(settings, monkeypatch):
    store.save(settings, inventory.collect(settings, now=5.0))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(Exception, match=r"could not write .*inventory.json: No space"):
        store.save(settings, inventory.collect(settings, now=6.0))
    monkeypatch.undo()
    assert store.read(settings).snapshot.fetched_at == 5.0
    assert [p.name for p in store.path(settings).parent.glob(".inventory*")] == []


# -- age -----------------------------------------------------------------------------------------


def test_a_fresh_snapshot_needs_no_api_call(settings, api):
    inventory.load(settings, now=lambda: 1000.0, variables={})
    inventory.load(settings, now=lambda: 1060.0, variables={})
    assert api.calls == {"DescribeInstances": 1}


def test_an_old_one_is_renewed_and_so_is_one_from_before_a_changed_fleet_file(settings, repo, api):
    inventory.load(settings, now=lambda: 1000.0, variables={})
    assert inventory.load(settings, now=lambda: 1061.0, variables={}).fetched_at == 1061.0
    point(repo, "log_retention_days: 7", "log_retention_days: 14")
    changed = config.load("lab", root=repo)
    assert inventory.load(changed, now=lambda: 1062.0, variables={}).fetched_at == 1062.0
    assert inventory.load(changed, refresh=True, now=lambda: 1063.0).fetched_at == 1063.0
    assert api.calls == {"DescribeInstances": 4}


def test_a_clock_that_went_backwards_makes_a_snapshot_old(settings, api):
    inventory.load(settings, now=lambda: 1000.0, variables={})
    inventory.load(settings, now=lambda: 900.0, variables={})
    assert api.calls == {"DescribeInstances": 2}


def test_an_outage_serves_readers_the_last_snapshot_and_says_how_old_it_is(settings, api):
    inventory.load(settings, now=lambda: 1000.0, variables={})
    api.stop()
    seen = inventory.load(settings, now=lambda: 90_000.0, variables={})
    assert len(seen.hosts) == 12
    assert "the list of hosts is 89000 s old" in seen.warning
    assert "does not answer" in seen.warning


def test_an_outage_stops_changes_beyond_the_stated_age_only(settings, api):
    inventory.load(settings, now=lambda: 1000.0, variables={})
    api.stop()
    limit = inventory.max_age(settings, {})
    assert limit == 300
    allowed = inventory.load(settings, max_age_seconds=limit, now=lambda: 1300.0, variables={})
    assert allowed.warning
    with pytest.raises(Refused) as caught:
        inventory.load(settings, max_age_seconds=limit, now=lambda: 1301.0, variables={})
    message = str(caught.value)
    assert "301 s old and may be at most 300 s" in message
    assert "Nothing was changed" in message
    assert "Next: fab lab.up; or FLOTILLA_INVENTORY_MAX_AGE=<seconds>" in message


def test_an_outage_without_a_snapshot_is_an_error(settings, api):
    api.stop()
    with pytest.raises(Unreachable, match=r"does not answer.*Next: fab lab.up"):
        inventory.load(settings, variables={})


def test_missing_credentials_are_not_an_outage(settings, repo):
    inventory.load(settings, now=lambda: 1000.0, variables={})
    (repo / "var" / "lab" / "aws" / "credentials").unlink()
    point(repo, "profile: lab", "profile: gone")
    with pytest.raises(Refused, match=r"no AWS credentials for profile 'gone'.*Next: fab lab.up"):
        inventory.load(config.load("lab", root=repo), now=lambda: 2000.0, variables={})


def test_the_operator_may_set_the_age_and_nonsense_is_refused(settings):
    assert inventory.max_age(settings, {"FLOTILLA_INVENTORY_MAX_AGE": "900"}) == 900
    for nonsense in ("soon", "-1", "inf", "nan"):
        with pytest.raises(BadOption, match="FLOTILLA_INVENTORY_MAX_AGE is"):
            inventory.max_age(settings, {"FLOTILLA_INVENTORY_MAX_AGE": nonsense})


def test_changes_are_refused_while_two_instances_claim_one_name(settings):
    twins = [
        Instance(f"i-{n}", "10.77.0.9", "eu-central-1a", tuple((OURS | {"Name": "app-1"}).items()))
        for n in (1, 2)
    ]
    with FakeEc2(twins) as endpoint:
        aws = settings.aws.model_copy(update={"endpoint_url": endpoint.url})
        unclear = settings.model_copy(update={"aws": aws})
        assert inventory.load(unclear, variables={}).problems
        with pytest.raises(Refused, match=r"cannot be told apart.*app-1: i-1, i-2"):
            inventory.load(unclear, max_age_seconds=300, variables={})


# -- finding hosts -------------------------------------------------------------------------------


def test_hosts_are_in_order_and_found_by_name_or_id(settings):
    found = inventory.collect(settings, now=1.0)
    assert [h.name for h in found.hosts][:4] == ["bastion-1", "lb-1", "lb-2", "app-1"]
    assert found.host("mysql-2") is found.host(found.host("mysql-2").instance_id)
    assert [h.name for h in found.by_role("redis")] == ["redis-1", "redis-2", "redis-3"]


def test_an_unknown_host_is_answered_with_the_nearest(settings):
    with pytest.raises(BadOption, match="there is no host 'mysqll-1'; the fleet has mysql-1"):
        inventory.collect(settings, now=1.0).host("mysqll-1")


# -- for Ansible ---------------------------------------------------------------------------------


def test_groups_are_roles_and_zones_and_exist_when_empty(settings):
    empty = groups.document(settings, snapshot([], now=1.0))
    assert {"bastion", "lb", "app", "mysql", "redis", "zone_eu_central_1a"} <= set(empty)
    full = groups.document(settings, inventory.collect(settings, now=1.0))
    assert full["mysql"]["hosts"] == ["mysql-1", "mysql-2", "mysql-3"]
    assert "bastion-1" in full["zone_eu_central_1a"]["hosts"]


def test_a_stopped_host_is_shown_but_not_configured(settings):
    hosts = inventory.collect(settings, now=1.0)
    stopped = replace(hosts, hosts=(replace(hosts.host("mysql-1"), state="stopped"),))
    assert groups.document(settings, stopped)["mysql"]["hosts"] == []


def test_ansible_goes_to_private_addresses_by_the_ssh_config_of_the_environment(settings, repo):
    listing = groups.document(settings, inventory.collect(settings, now=1.0))
    assert listing["_meta"]["hostvars"]["app-1"]["ansible_host"].startswith("10.77.")
    common = listing["all"]["vars"]
    assert common["ansible_ssh_common_args"] == f"-F {repo}/var/lab/ssh_config"
    assert common["aws_environment"]["AWS_PROFILE"] == "lab"


# -- the script ----------------------------------------------------------------------------------


def script(repo: Path, *arguments: str, python: str = sys.executable, **variables: str) -> Any:
    return subprocess.run(
        [python, str(repo / "inventory" / "lab" / "ec2.py"), *arguments],
        capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(repo), **variables},
    )  # fmt: skip


def test_the_script_lists_and_then_needs_no_api(repo, api):
    first = script(repo, "--list")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["redis"]["hosts"] == ["redis-1", "redis-2", "redis-3"]
    api.stop()
    again = script(repo, "--list")
    assert (again.stdout, again.stderr, again.returncode) == (first.stdout, "", 0)
    assert api.calls["DescribeInstances"] == 1


def test_a_hit_imports_nothing_but_the_standard_library(repo):
    script(repo, "--list")
    bare = subprocess.run(
        [sys.executable, "-S", "-E", "-X", "importtime", f"{repo}/inventory/lab/ec2.py", "--list"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "mysql-1" in bare.stdout
    for heavy in ("flotilla", "pydantic", "boto", "yaml"):
        assert heavy not in bare.stderr


def test_the_script_and_the_store_mean_the_same_file():
    text = (ROOT / "inventory" / "ec2.py").read_text()
    assert f"\nSCHEMA = {store.SCHEMA}\n" in text


def test_the_ssh_config_that_ansible_is_pointed_to_fits_the_list(repo):
    listed = script(repo, "--list")
    text = (repo / "var" / "lab" / "ssh_config").read_text()
    assert set(re.findall(r"^Host (\S+-\d+)", text, re.MULTILINE)) == set(
        json.loads(listed.stdout)["_meta"]["hostvars"]
    )
    assert "warning: 12 hosts have not shown their host keys yet: bastion-1" in listed.stderr


def test_the_script_serves_an_old_snapshot_in_an_outage_and_warns(repo, api):
    first = script(repo, "--list")
    api.stop()
    stale = script(repo, "--list", FLOTILLA_INVENTORY_FRESH="0")
    assert (stale.returncode, stale.stdout) == (0, first.stdout)
    assert "warning: the list of hosts is" in stale.stderr
    assert "fab lab.up" in stale.stderr


def test_the_script_says_what_to_do_when_there_is_nothing(repo, api):
    api.stop()
    failed = script(repo, "--list")
    assert (failed.returncode, failed.stdout) == (4, "")
    assert failed.stderr.startswith("error: could not list the instances of flotilla-lab")
    assert failed.stderr.count("\n") == 1


def test_a_changed_fleet_file_is_checked_before_anything_is_served(repo):
    script(repo, "--list")
    point(repo, "count: 3, type: t3.medium", "count: 2, type: t3.medium")
    refused = script(repo, "--list")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "fleet.tiers.mysql.count is 2" in refused.stderr


def test_refresh_asks_the_api_however_fresh_the_snapshot(repo, api):
    script(repo, "--list")
    assert "12 hosts in " in script(repo, "--refresh").stderr
    assert api.calls["DescribeInstances"] == 2


def test_one_host_can_be_asked_for(repo):
    assert json.loads(script(repo, "--host", "app-2").stdout)["fleet_number"] == 2
    unknown = script(repo, "--host", "app-99")
    assert unknown.returncode == 5
    assert "there is no active host 'app-99'" in unknown.stderr


@pytest.mark.parametrize("kept", [0, 40, 400, "header", "listing"])
def test_half_a_snapshot_is_never_listed(repo, api, kept):
    first = script(repo, "--list")
    path = repo / "var" / "lab" / "inventory.json"
    header, listing, _ = path.read_bytes().splitlines(keepends=True)
    ends = {"header": len(header), "listing": len(header + listing)}
    path.write_bytes((header + listing)[: ends.get(kept, kept)])
    assert script(repo, "--list").stdout == first.stdout
    assert api.calls["DescribeInstances"] == 2


def test_a_damaged_list_is_renewed(repo):
    script(repo, "--list")
    path = repo / "var" / "lab" / "inventory.json"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"x\n" + lines[2])
    assert json.loads(script(repo, "--host", "app-1").stdout)["fleet_number"] == 1


@pytest.mark.parametrize(
    "words", [["--nope"], ["--host"], ["--host", ""], ["--list", "--host", "x"]]
)
def test_the_script_has_the_exit_code_of_every_bad_option(repo, words):
    done = script(repo, *words)
    assert (done.returncode, done.stdout) == (5, "")
    assert "Next: " in done.stderr


@pytest.mark.parametrize("fresh", ["3600", "0"])
def test_a_list_that_cannot_be_written_is_one_sentence(repo, fresh):
    script(repo, "--list")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(repo / "inventory" / "lab" / "ec2.py"), "--list"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            env=os.environ | {"FLOTILLA_INVENTORY_FRESH": fresh},
        )  # fmt: skip
    assert done.returncode == 1
    assert "could not be written to stdout: " in done.stderr
    assert "Traceback" not in done.stderr


def test_ansible_itself_reads_the_script(repo):
    (repo / "ansible.cfg").write_text("[inventory]\nany_unparsed_is_failed = true\n")
    listing = subprocess.run(
        [Path(sys.executable).with_name("ansible-inventory"), "-i", f"{repo}/inventory/lab",
         "--host", "mysql-1"],
        capture_output=True, text=True, check=True, timeout=60, cwd=repo,
        env={"PATH": os.environ["PATH"], "HOME": str(repo),
             "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    seen = json.loads(listing.stdout)
    assert seen["fleet"]["name"] == "flotilla"
    assert seen["ansible_user"] == "admin"
    assert seen["fleet_role"] == "mysql"


def test_ten_thousand_hosts_are_listed_from_a_snapshot(repo):
    settings = config.load("lab", root=repo)
    one = inventory.collect(settings, now=1.0).host("app-1")
    many = tuple(replace(one, name=f"app-{n}", number=n) for n in range(1, 10_001))
    store.save(settings, Snapshot(time.time(), many))
    listed = script(repo, "--list")
    assert len(json.loads(listed.stdout)["_meta"]["hostvars"]) == 10_000

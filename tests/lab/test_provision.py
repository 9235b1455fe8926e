"""A fleet made and taken away by the operator's commands, on real hosts: what can be reached, and
what not.

It is a fleet of its own beside any other in the lab, from a copy of the repository, so that
nobody's files and hosts are touched.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from guests import REPO, ZONES, client, needs_lab, until

from flotilla.provision.world import data
from flotilla.rules import reachability
from flotilla.settings import ROLES

pytestmark = needs_lab

NAME = "provtest"
CIDR = "10.78.0.0/16"
COPIED = ("ansible.cfg", "fabfile", "inventory", "lab", "playbooks", "scripts")
TESTED = {"Fleet": NAME, "Status": "tested", "ManagedBy": "flotilla"}

# Tries every address and port at once; "refused" came back from the host, silence did not get
# there.
SCAN = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def tried(target):
    try:
        socket.create_connection(target, 2).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
targets = [tuple(target) for target in json.load(sys.stdin)]
with ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps([t for t, there in zip(targets, pool.map(tried, targets)) if there]))
"""


@dataclass
class Fleet:
    """The copy of the repository, and the commands of an operator in it."""

    repo: Path

    def fab(self, *arguments: str, code: int = 0) -> Any:
        """Run `fab`; what it printed as JSON. The exit code must be `code`."""
        done = self.run(str(Path(sys.executable).parent / "fab"), *arguments, "--json")
        assert done.returncode == code, done.stderr[-3000:]
        return json.loads(done.stdout)

    def run(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=self.repo,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def ssh(self, host: str, *command: str, stdin: str = "") -> str:
        done = self.run("ssh", "-F", "var/lab/ssh_config", host, *command, stdin=stdin)
        assert done.returncode == 0, f"{host}: {done.stderr}"
        return done.stdout

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Every instance of the fleet that runs, by name."""
        wanted = {"tag:Fleet": [NAME], "instance-state-name": ["pending", "running"]}
        filters = [{"Name": key, "Values": values} for key, values in wanted.items()]
        answer = client("ec2").describe_instances(Filters=filters)["Reservations"]
        found = [instance for reservation in answer for instance in reservation["Instances"]]
        return {tags(one).get("Name", one["InstanceId"]): one for one in found}

    def want(self, **counts: int) -> None:
        """Write other tier sizes into fleet.yml."""
        path = self.repo / "inventory" / "lab" / "group_vars" / "all" / "fleet.yml"
        text = path.read_text()
        for role, count in counts.items():
            text = re.sub(rf"({role}: {{count: )\d+", rf"\g<1>{count}", text)
        path.write_text(text)


def tags(resource: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", ())}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    repo = tmp_path_factory.mktemp("fleet")
    for name in COPIED:
        source, target = REPO / name, repo / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)
    path = repo / "inventory" / "lab" / "group_vars" / "all" / "fleet.yml"
    text = re.sub(r"(?m)^  name: \S+", f"  name: {NAME}", path.read_text())
    text = re.sub(r"vpc_cidr: \S+", f"vpc_cidr: {CIDR}", text)
    path.write_text(text.replace("var/lab/aws", str(REPO / "var" / "lab" / "aws")))
    made = Fleet(repo)
    remove_images()
    register_images()
    try:
        made.fab("fleet.provision", "--yes")
        yield made
    finally:
        made.fab("fleet.destroy", "--data", "--yes", NAME)
        remove_images()


def register_images() -> None:
    """An image for every role, all of them the lab's plain Debian."""
    ec2 = client("ec2")
    debian = ec2.describe_images(Filters=[{"Name": "name", "Values": ["debian-13-*"]}])["Images"]
    newest = max(debian, key=lambda image: image["CreationDate"])["ImageId"]
    for role in ROLES:
        name = f"{NAME}-{role}-20261121000000"
        image = ec2.copy_image(Name=name, SourceImageId=newest, SourceRegion="eu-central-1")
        pairs = [{"Key": k, "Value": v} for k, v in (TESTED | {"Role": role}).items()]
        ec2.create_tags(Resources=[image["ImageId"]], Tags=pairs)
    until(
        lambda: {image["State"] for image in our_images()} == {"available"},
        60,
        "copies of images",
    )


def our_images() -> list[dict[str, Any]]:
    filters = [{"Name": "tag:Fleet", "Values": [NAME]}]
    return list(client("ec2").describe_images(Filters=filters)["Images"])


def remove_images() -> None:
    for image in our_images():
        client("ec2").deregister_image(ImageId=image["ImageId"])


def test_every_host_answers_ssh_through_the_bastion_with_the_key_its_console_showed(fleet):
    names = sorted(fleet.hosts())
    assert names == [
        *("app-1", "app-2", "app-3", "bastion-1", "lb-1", "lb-2"),
        *("mysql-1", "mysql-2", "mysql-3", "redis-1", "redis-2", "redis-3"),
    ]
    for name in names:
        assert fleet.hosts()[name]["PrivateIpAddress"] in fleet.ssh(name, "hostname", "-I")


def test_each_tier_stands_in_all_zones_it_can(fleet):
    zones: dict[str, set[str]] = {role: set() for role in ROLES}
    for host in fleet.hosts().values():
        zones[tags(host)["Role"]].add(host["Placement"]["AvailabilityZone"])
    assert {role: len(found) for role, found in zones.items()} == {
        "bastion": 1,
        "lb": 2,
        "app": len(ZONES),
        "mysql": len(ZONES),
        "redis": len(ZONES),
    }


def test_the_network_lets_through_exactly_what_the_table_says(fleet):
    table = reachability.rows(data("reachability.yml"))
    outside = {"operator": ("198.18.0.0/24",), "clients": ("198.18.0.0/24",), "internet": ()}
    groups = reachability.groups(table, roles=ROLES, outside=outside)
    ports = sorted({rule.port for group in groups.values() for rule in group.ingress if rule.port})
    ports += [111, 8000, 33060]  # in nobody's row
    hosts = fleet.hosts()
    # The second of a kind where there is one: a tier must reach its own kind on another host.
    targets = {role: f"{role}-{2 if f'{role}-2' in hosts else 1}" for role in ROLES}
    pairs = {(hosts[name]["PrivateIpAddress"], role) for role, name in targets.items()}
    for role in ROLES:
        wanted = [(address, port) for (address, _), port in product(pairs, ports)]
        if role == "bastion":  # there is one bastion, and it may talk to itself
            wanted = [pair for pair in wanted if pair[0] != hosts["bastion-1"]["PrivateIpAddress"]]
        found = json.loads(fleet.ssh(f"{role}-1", f"python3 -c '{SCAN}'", stdin=json.dumps(wanted)))
        kind = dict(pairs)
        assert {(kind[address], port) for address, port in found} == {
            (to, rule.port)
            for to in ROLES
            for rule in groups[to].ingress
            if rule.peer == role and rule.port
        }, f"what {role}-1 can reach"


def test_hosts_know_who_they_are_by_imdsv2_alone(fleet):
    ask = "curl -s -o /dev/null -w %{http_code} http://169.254.169.254/latest/meta-data/"
    assert fleet.ssh("mysql-1", ask) == "401"
    token = (
        "T=$(curl -s -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "
        'http://169.254.169.254/latest/api/token); curl -s -H "X-aws-ec2-metadata-token: $T" '
        "http://169.254.169.254/latest/meta-data/"
    )
    assert fleet.ssh("mysql-1", token + "tags/instance/Name") == "mysql-1"
    assert fleet.ssh("mysql-1", token + "iam/security-credentials/") == f"{NAME}-lab-mysql"


def test_a_second_run_changes_nothing_by_either_command(fleet):
    assert fleet.fab("fleet.provision", "--yes")["changed"] == 0
    playbook = fleet.run(
        str(Path(sys.executable).parent / "ansible-playbook"),
        *("-i", "inventory/lab", "playbooks/provision.yml", "-e", "provision_confirmed=true"),
    )
    assert playbook.returncode == 0, playbook.stdout[-3000:]
    assert re.search(r"localhost\s+: ok=\d+\s+changed=0\s", playbook.stdout)


def test_without_a_yes_the_plan_is_shown_and_nothing_changes(fleet):
    before = set(fleet.hosts())
    fleet.want(app=4)
    refused = fleet.fab("fleet.provision", code=3)["error"]
    assert "Nothing was changed" in refused["untouched"]
    refused = fleet.fab("fleet.destroy", "--yes", "another", code=3)["error"]
    assert "another" in refused["what"]
    assert set(fleet.hosts()) == before
    fleet.want(app=3)


def test_a_lost_application_host_is_replaced_and_gets_the_free_name(fleet):
    lost = fleet.hosts()["app-2"]["InstanceId"]
    client("ec2").terminate_instances(InstanceIds=[lost])
    until(lambda: "app-2" not in fleet.hosts(), 30, "the host is gone")
    fleet.fab("fleet.provision", "--yes")
    assert fleet.hosts()["app-2"]["InstanceId"] != lost
    assert fleet.ssh("app-2", "true") == ""


def test_a_tier_grows_by_fleet_yml_and_a_tier_with_data_shrinks_only_when_told(fleet):
    fleet.want(redis=5)
    fleet.fab("fleet.provision", "--yes")
    assert fleet.ssh("redis-5", "true") == ""
    fleet.want(redis=3)
    assert "--shrink redis" in fleet.fab("fleet.provision", "--yes", code=3)["error"]["next"]
    assert "redis-5" in fleet.hosts()
    done = fleet.fab("fleet.provision", "--yes", "--shrink", "redis")
    assert {change["name"] for change in done["changes"]} == {"redis-4", "redis-5"}
    until(lambda: "redis-5" not in fleet.hosts(), 30, "the host is gone")


def test_destroy_leaves_the_data_and_nothing_else_and_the_fleet_comes_back(fleet):
    gone = fleet.fab("fleet.destroy", "--yes", NAME)
    assert gone["changed"] > 50
    assert fleet.hosts() == {}
    ours = [{"Name": "tag:Fleet", "Values": [NAME]}]
    assert client("ec2").describe_vpcs(Filters=ours)["Vpcs"] == []
    assert client("ec2").describe_addresses(Filters=ours)["Addresses"] == []
    buckets = {bucket["Name"] for bucket in client("s3").list_buckets()["Buckets"]}
    assert {f"{NAME}-lab-backups", f"{NAME}-lab-audit"} <= buckets
    assert fleet.fab("fleet.destroy", "--yes", NAME)["changed"] == 0
    fleet.fab("fleet.provision", "--yes")
    assert fleet.ssh("mysql-3", "true") == ""

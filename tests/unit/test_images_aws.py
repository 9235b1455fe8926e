"""Images and build hosts in an EC2 API: what is listed, what is let go, what is cleaned up."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from fleets import maker, planned, register_images
from moto import mock_aws

from flotilla import images
from flotilla.aws import images as edge
from flotilla.aws import workbench
from flotilla.aws.session import client
from flotilla.errors import BadOption, Refused
from flotilla.images import keep
from flotilla.images.bake import sweep
from flotilla.rules import sbom as sbom_rules

LATER = datetime.now(UTC) + timedelta(days=2)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q operator"


@pytest.fixture
def world(tmp_path):
    make = maker(tmp_path)
    with mock_aws():
        yield make()


def launch(world, image_id):
    world.ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1)


def gone(world, before):
    left = {image.image_id for image in edge.ours(world.settings)}
    return {role for role, image_id in before.items() if image_id not in left}


def test_the_image_to_launch_is_the_tested_one(world):
    tested = register_images(world)
    register_images(world, status="baked")
    assert images.latest_tested(world.settings, "mysql").image_id == tested["mysql"]


def test_without_a_tested_image_a_launch_is_refused_with_the_next_command(world):
    register_images(world, status="baked")
    with pytest.raises(Refused, match="no tested image for app") as caught:
        images.latest_tested(world.settings, "app")
    assert caught.value.next == "fab images.bake"


def test_images_of_other_fleets_are_not_ours(world):
    foreign = world.ec2.register_image(Name="theirs", RootDeviceName="/dev/sda1")["ImageId"]
    world.ec2.create_tags(
        Resources=[foreign],
        Tags=[{"Key": "Fleet", "Value": "theirs"}, {"Key": "ManagedBy", "Value": "flotilla"}],
    )
    assert edge.ours(world.settings) == []


def test_a_prune_drops_what_was_agreed_and_spares_what_came_into_use_since(world):
    failed = register_images(world, status="baked")
    tested = register_images(world)
    verdicts = images.verdicts(world.settings, now=LATER)
    assert {v.image.image_id for v in verdicts if v.drop} == set(failed.values())
    launch(world, failed["app"])
    assert len(images.drop(world.settings, verdicts)) == len(failed) - 1
    assert gone(world, failed) == set(failed) - {"app"}
    assert gone(world, tested) == set()


def test_an_image_that_only_an_old_template_version_names_is_in_use(world):
    ids = register_images(world)
    older, newer = ({"ImageId": ids[role], "InstanceType": "t3.small"} for role in ("app", "lb"))
    world.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=older)
    world.ec2.create_launch_template_version(LaunchTemplateName="web", LaunchTemplateData=newer)
    assert {ids["app"], ids["lb"]} <= set(edge.in_use(world.settings))


def test_removing_an_image_twice_is_fine(world):
    register_images(world)
    one = edge.ours(world.settings)[0]
    edge.remove(world.settings, one)
    edge.remove(world.settings, one)


def test_a_finished_image_asks_for_imdsv2_and_its_tags_are_on_its_snapshots(world):
    register_images(world)
    one = edge.ours(world.settings)[0]
    edge.tag(world.settings, one, Status="tested", GitCommit="abc")
    assert next(i for i in edge.ours(world.settings) if i == one or i.git_commit == "abc")
    for snapshot in one.snapshots:
        (found,) = world.ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
        assert {"Key": "GitCommit", "Value": "abc"} in found["Tags"]


def test_nothing_is_left_of_a_bake_that_fails_in_the_middle(world):
    image_id = register_images(world)["app"]

    def broken():
        with workbench.open_workbench(
            world.settings, "20261121-abc", public_key=KEY, tags={"Fleet": "flotilla"}
        ) as opened:
            workbench.launch(world.settings, opened, image_id, tags={"Name": "test"})
            assert workbench.left_behind(world.settings) == {"20261121-abc"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    (found,) = world.ec2.describe_instances()["Reservations"]
    assert found["Instances"][0]["State"]["Name"] == "terminated"
    assert workbench.left_behind(world.settings) == set()
    assert world.ec2.describe_key_pairs()["KeyPairs"] == []


def test_a_bake_clears_up_after_one_that_was_killed_and_spares_one_that_may_be_running(world):
    group = {"Description": "of a bake", "VpcId": world.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]}
    for build_id in ("20261121100000-dead", "20261121115500-live"):
        tag = {"Key": "BuildId", "Value": build_id}
        world.ec2.create_security_group(
            GroupName=f"flotilla-lab-bake-{build_id}",
            TagSpecifications=[{"ResourceType": "security-group", "Tags": [tag]}],
            **group,
        )
    noon = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    assert sweep(world.settings, noon) == ["20261121100000-dead"]
    assert workbench.left_behind(world.settings) == {"20261121115500-live"}


def test_a_build_host_is_reached_from_the_operators_networks_only(world):
    with workbench.open_workbench(world.settings, "b", public_key=KEY, tags={}) as opened:
        (group,) = world.ec2.describe_security_groups(GroupIds=[opened.group_id])["SecurityGroups"]
    (rule,) = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert [r["CidrIp"] for r in rule["IpRanges"]] == list(world.settings.ssh.allow_from)


@pytest.mark.parametrize(
    ("keep", "says"), [("0", "--keep 0"), ("-1", "--keep -1"), ("x", "--keep x")]
)
def test_a_keep_that_would_leave_nothing_is_a_bad_option(world, keep, says):
    with pytest.raises(BadOption, match=says):
        images.verdicts(world.settings, keep=keep)


def test_an_unknown_image_name_is_answered_with_those_that_exist():
    with pytest.raises(BadOption, match="'web'; there are: base, mysql"):
        images.chosen("app,web")


# Bills of materials

INVENTORY = {
    "distribution": "debian",
    "release": "13",
    "suite": "trixie",
    "architecture": "amd64",
    "packages": [["jq", "1.7.1-6", "amd64", "jq", "1.7.1-6"]],
    "python": [],
    "apt": {"/etc/apt/sources.list": ""},
}


def test_a_bill_is_kept_before_the_fleet_has_buckets_and_the_first_one_stays(world):
    register_images(world)
    image = images.latest_tested(world.settings, "app")
    assert images.sbom.keep(world.settings, image, INVENTORY) == ""
    other = INVENTORY | {"packages": [["jq", "9", "amd64", "jq", "9"]]}
    assert images.sbom.keep(world.settings, image, other) == ""
    kept = images.sbom.load(world.settings, image)
    assert [part["version"] for part in kept["components"]] == ["1.7.1-6"]
    assert kept["metadata"]["component"]["name"] == image.name


def put_bill(world, image, body: bytes) -> None:
    bucket = world.settings.name_of("artifacts")
    client(world.settings, "s3").put_object(
        Bucket=bucket, Key=f"sbom/{image.image_id}.cdx.json", Body=body
    )


def bill(world, image) -> dict:
    return json.loads(images.sbom._document(image, INVENTORY))


DAMAGED = {
    "empty": lambda _: b"",
    "cut off": lambda made: json.dumps(made).encode()[:-40],
    "not text": lambda _: b"\xff\xfe",
    "a list": lambda _: b"[]",
    "nothing in it": lambda _: b"{}",
    "no url": lambda made: json.dumps(made | {"components": [{"name": "jq"}]}).encode(),
    "foreign": lambda made: json.dumps(
        made | {"components": [{"purl": "pkg:deb/debian/jq@1", "version": "1"}]}
    ).encode(),
    "another file": lambda made: (
        json.dumps(made).replace("apt:/etc/apt/", "apt:/etc/apt/../../../").encode()
    ),
    "a command": lambda made: (
        json.dumps(made).replace("/etc/apt/sources.list", "/etc/apt/apt.conf.d/x").encode()
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_bill_is_told_of_in_one_error_and_keeps_nobody_from_the_others(world, kind):
    """What it says of apt is written to this machine, so no file but apt's lists is taken."""
    register_images(world)
    app, lb = (images.latest_tested(world.settings, role) for role in ("app", "lb"))
    for image in (app, lb):
        images.sbom.keep(world.settings, image, INVENTORY)
    put_bill(world, app, DAMAGED[kind](bill(world, app)))
    with pytest.raises(Refused, match="is damaged: ") as caught:
        images.sbom.load(world.settings, app)
    assert caught.value.next.startswith("aws s3 rm s3://flotilla-lab-artifacts/sbom/ami-")
    known = keep._known(world.settings, [app, lb], print, LATER)
    assert "is damaged" in str(known[app.image_id].fixes)
    assert "damaged" not in str(known[lb.image_id].fixes)


@pytest.mark.parametrize(
    ("one", "said"),
    [([None, "1", "/opt"], "none could be made"), (["x", None, "/opt"], "")],
)
def test_an_image_is_none_the_worse_for_a_program_that_says_nothing_of_itself(world, one, said):
    register_images(world)
    image = images.latest_tested(world.settings, "app")
    told = images.sbom.keep(world.settings, image, INVENTORY | {"python": [one]})
    assert told.startswith(said)
    if not said:
        found = sbom_rules.packages(images.sbom.load(world.settings, image))
        assert found["python:x in /opt"] == ""


def test_provisioning_takes_over_the_bucket_that_a_bake_made(world):
    register_images(world)
    bucket = f"create bucket {world.settings.name_of('artifacts')}"
    assert bucket in planned(world)
    images.sbom.keep(world.settings, images.latest_tested(world.settings, "app"), INVENTORY)
    after = planned(world)
    assert bucket not in after
    assert any(world.settings.name_of("artifacts") in line for line in after)


def test_a_bill_that_cannot_be_kept_says_why_and_the_image_is_none_the_worse(world):
    register_images(world)
    image = images.latest_tested(world.settings, "app")
    nobody = world.settings.aws.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    away = world.settings.model_copy(update={"aws": nobody})
    assert "bill of materials" in images.sbom.keep(away, image, INVENTORY)
    assert images.latest_tested(world.settings, "app") == image


def test_what_is_known_of_an_image_without_a_bill_is_nothing_and_what_makes_one(world):
    register_images(world)
    app, lb = (images.latest_tested(world.settings, role) for role in ("app", "lb"))
    images.sbom.keep(world.settings, app, INVENTORY)
    known = keep._known(world.settings, [app, lb], print, LATER)
    assert "bill of materials" not in str(known[app.image_id].fixes)
    for told in (known[lb.image_id].fixes, known[lb.image_id].flaws):
        assert f"not known: no bill of materials was kept of {lb.image_id}" in str(told)
        assert f"fab images.test {lb.image_id}" in str(told)


def test_an_image_without_a_bill_is_refused_with_what_makes_one(world):
    ids = register_images(world)
    with pytest.raises(Refused, match="no bill of materials was kept") as caught:
        images.sbom.load(world.settings, images.find(world.settings, "app"))
    assert caught.value.next == f"fab images.test {ids['app']}"

"""What a provisioned fleet is in AWS, and how a difference is mended. One fleet for all tests here,
each of which leaves it as it found it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError
from fleets import Make, maker, planned, register_images, secret_values
from moto import mock_aws

from flotilla.errors import FlotillaError, Refused
from flotilla.provision import hosts, parts
from flotilla.provision.world import World, by_name, data, tag
from flotilla.settings import ROLES, SCRATCH


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    make = maker(tmp_path_factory.mktemp("repo"))
    with mock_aws():
        register_images(make())
        parts.converge(make())
        yield make


@pytest.fixture
def fleet(account: Make) -> Iterator[Make]:
    """A function that gives a World on the fleet: `fleet(app=4)` wants four app hosts of it."""
    yield account
    parts.converge(account(), shrink=["mysql", "redis"])


def test_a_second_run_changes_nothing(fleet):
    assert planned(fleet()) == []
    assert parts.converge(fleet()) == []


def test_hosts_have_names_zones_and_subnets_by_the_rule(fleet):
    world = fleet()
    found = by_name(hosts.instances(world))
    assert sorted(found) == [
        *("app-1", "app-2", "app-3", "bastion-1", "lb-1", "lb-2"),
        *("mysql-1", "mysql-2", "mysql-3", "redis-1", "redis-2", "redis-3"),
    ]
    subnets = {s["SubnetId"]: tag(s, "Name") for s in world.ec2.describe_subnets()["Subnets"]}
    placed = {name: subnets[host["SubnetId"]] for name, host in found.items() if "app" not in name}
    assert placed["lb-2"] == "flotilla-lab-public-b"
    assert placed["mysql-3"] == "flotilla-lab-private-c"
    assert {name for name, host in found.items() if host.get("PublicIpAddress")} == {
        "bastion-1",
        "lb-1",
        "lb-2",
    }


def test_an_application_host_ends_only_after_the_load_balancers_had_time_to_drain_it(fleet):
    scaling = fleet().client("autoscaling")

    def hook():
        name = "flotilla-lab-app"
        return scaling.describe_lifecycle_hooks(AutoScalingGroupName=name)["LifecycleHooks"][0]

    assert hook()["DefaultResult"] == "CONTINUE", "without load balancers it ends all the same"
    scaling.put_lifecycle_hook(
        AutoScalingGroupName="flotilla-lab-app",
        LifecycleHookName="drain",
        LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
        HeartbeatTimeout=7200,
        DefaultResult="ABANDON",
    )
    assert planned(fleet()) == ["change lifecycle hook flotilla-lab-app drain (at most 60 s)"]
    parts.converge(fleet())
    assert (hook()["HeartbeatTimeout"], hook()["DefaultResult"]) == (60, "CONTINUE")


def test_security_groups_have_exactly_the_rules_of_the_table_and_the_default_none(fleet):
    world = fleet()
    groups = fleet_groups(world)
    assert "default" in groups.values()
    counted = Counter(
        (groups[rule["GroupId"]], "out" if rule["IsEgress"] else "in")
        for rule in world.ec2.describe_security_group_rules()["SecurityGroupRules"]
        if rule["GroupId"] in groups
    )
    assert counted == {
        ("bastion", "in"): 1,
        ("bastion", "out"): 7,
        ("lb", "in"): 8,
        ("lb", "out"): 8,
        ("app", "in"): 3,
        ("app", "out"): 6,
        ("mysql", "in"): 6,
        ("mysql", "out"): 5,
        ("redis", "in"): 6,
        ("redis", "out"): 5,
    }


def fleet_groups(world: World) -> dict[str, str]:
    """Id to role of every group in the fleet's VPC; the VPC's own group is "default"."""
    vpc = world.ec2.describe_vpcs(Filters=world.mine())["Vpcs"][0]["VpcId"]
    found = world.ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    return {g["GroupId"]: tag(g, "Role") or g["GroupName"] for g in found["SecurityGroups"]}


def test_a_rule_added_by_hand_is_taken_away_and_a_lost_one_comes_back(fleet):
    world = fleet()
    group = next(g for g, role in fleet_groups(world).items() if role == "mysql")
    by_hand = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 65535}
    world.ec2.authorize_security_group_ingress(
        GroupId=group, IpPermissions=[by_hand | {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    )
    lost = next(
        rule["SecurityGroupRuleId"]
        for rule in world.ec2.describe_security_group_rules()["SecurityGroupRules"]
        if (rule["GroupId"], rule["IsEgress"], rule["FromPort"]) == (group, False, 3380)
    )
    world.ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[lost])
    assert planned(fleet()) == ["change security group flotilla-lab-mysql (ingress +1 -1 rules)"]
    parts.converge(fleet())
    assert planned(fleet()) == []


def test_secrets_are_never_made_again(fleet):
    before = secret_values(fleet())
    parts.converge(fleet(app=4, lb=2))
    assert secret_values(fleet()) == before
    generated = {
        name: value for name, value in before.items() if not value.startswith("-----BEGIN ")
    }
    # The SSH CAs are keys, not passwords.
    kept = data("secrets.yml").items()
    wanted = [name for role, names in kept if role != "ssh" for name in names]
    assert len(set(generated.values())) == len(generated) == len(wanted)
    # 192 bits; MySQL takes at most 32 characters for a replication account.
    assert {len(value) for value in generated.values()} == {32}


def test_one_lost_secret_comes_back_alone(fleet):
    fleet().client("ssm").delete_parameter(Name="/flotilla/lab/app/secret_key")
    assert planned(fleet()) == ["create secret /flotilla/lab/app/secret_key"]


def test_hosts_are_added_when_counts_grow(fleet):
    assert planned(fleet(app=4, redis=5)) == [
        "create instance redis-4 (in eu-central-1a)",
        "create instance redis-5 (in eu-central-1b)",
        "change Auto Scaling group flotilla-lab-app (MaxSize, DesiredCapacity)",
        "change host names app (1 new hosts)",
    ]
    parts.converge(fleet(app=4, redis=5))
    assert {"app-4", "redis-4", "redis-5"} <= set(by_name(hosts.instances(fleet())))


def test_a_stateful_tier_shrinks_only_when_told_and_is_otherwise_untouched(fleet):
    parts.converge(fleet(mysql=4))
    with pytest.raises(Refused, match=r"mysql-4 hold.*Nothing was changed.*--shrink mysql"):
        parts.converge(fleet())
    assert "mysql-4" in by_name(hosts.instances(fleet()))
    parts.converge(fleet(), shrink=["mysql"])
    assert "mysql-4" not in by_name(hosts.instances(fleet()))


def test_the_primary_of_the_record_is_not_taken_away_even_when_told(fleet):
    parts.converge(fleet(mysql=4))
    primary = by_name(hosts.instances(fleet()))["mysql-4"]["InstanceId"]
    fleet().client("dynamodb").put_item(
        TableName="flotilla-lab-clusters",
        Item={
            "cluster": {"S": "mysql"},
            "term": {"N": "3"},
            "primary_instance_id": {"S": primary},
            "primary_uuid": {"S": "8a94f357-aab4-11df-86ab-c80aa9429562"},
            "fence": {"N": "1"},
        },
    )
    with pytest.raises(Refused, match="mysql-4 is the primary"):
        parts.plan(fleet(), shrink=["mysql"])
    fleet().client("dynamodb").delete_item(
        TableName="flotilla-lab-clusters", Key={"cluster": {"S": "mysql"}}
    )


def test_a_stopped_host_is_left_stopped(fleet):
    world = fleet()
    fenced = by_name(hosts.instances(world))["mysql-1"]["InstanceId"]
    world.ec2.stop_instances(InstanceIds=[fenced])
    assert planned(fleet()) == []
    assert by_name(hosts.instances(world))["mysql-1"]["State"]["Name"] == "stopped"
    world.ec2.start_instances(InstanceIds=[fenced])


def test_a_new_image_is_a_new_template_version_and_moves_no_host(fleet):
    before = {host["InstanceId"] for host in hosts.instances(fleet())}
    newer = register_images(fleet(), replace=True)
    assert Counter(words.split(" flotilla")[0] for words in planned(fleet())) == {
        "change launch template": len([*ROLES, *SCRATCH]),
        "change Auto Scaling group": 1,
    }
    parts.converge(fleet())
    assert {host["InstanceId"] for host in hosts.instances(fleet())} == before
    latest = fleet().ec2.describe_launch_template_versions(
        LaunchTemplateName="flotilla-lab-app", Versions=["$Default"]
    )["LaunchTemplateVersions"][0]
    assert latest["VersionNumber"] > 1
    assert latest["LaunchTemplateData"]["ImageId"] == newer["app"]


def test_templates_demand_imdsv2_and_encrypted_disks(fleet):
    world = fleet()
    for role in ROLES:
        found = world.ec2.describe_launch_template_versions(
            LaunchTemplateName=f"flotilla-lab-{role}", Versions=["$Default"]
        )["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        assert found["MetadataOptions"]["HttpTokens"] == "required"
        assert found["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert [disk["Ebs"]["Encrypted"] for disk in found["BlockDeviceMappings"]] == [True]
        assert found["IamInstanceProfile"] == {"Name": f"flotilla-lab-{role}"}


def test_buckets_are_versioned_encrypted_closed_and_mended(fleet):
    s3 = fleet().client("s3")
    s3.put_bucket_versioning(
        Bucket="flotilla-lab-backups", VersioningConfiguration={"Status": "Suspended"}
    )
    s3.delete_public_access_block(Bucket="flotilla-lab-audit")
    assert planned(fleet()) == [
        "change bucket flotilla-lab-backups (versioned)",
        "change bucket flotilla-lab-audit (closed to the public)",
    ]
    parts.converge(fleet())
    for name in ("artifacts", "backups", "audit"):
        bucket = f"flotilla-lab-{name}"
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        assert all(
            s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()
        )
        assert s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]


def test_backups_are_locked_grow_cold_and_what_a_drill_leaves_expires(fleet):
    s3 = fleet().client("s3")
    name = "flotilla-lab-backups"
    s3.put_object(Bucket=name, Key="mysql/full/x/manifest.json", Body=b"{}")
    version = s3.list_object_versions(Bucket=name)["Versions"][0]
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket=name, Key=version["Key"], VersionId=version["VersionId"])
    s3.delete_object(
        Bucket=name,
        Key=version["Key"],
        VersionId=version["VersionId"],
        BypassGovernanceRetention=True,
    )
    rules = {
        rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    }
    cold = rules["cold-mysql-full"]
    assert cold["Filter"] == {"Prefix": "mysql/full/"}
    assert cold["Transitions"] == [{"Days": 30, "StorageClass": "GLACIER_IR"}]
    assert rules["expire-mysql-drill-work"]["Expiration"]["Days"] == 7
    assert planned(fleet()) == []


def test_backups_are_copied_to_another_region_with_the_keys_that_open_them(fleet):
    world = fleet()
    there = World(world.settings.elsewhere("eu-west-1"))
    s3, name = there.client("s3"), "flotilla-lab-backups-copy"
    assert s3.get_bucket_location(Bucket=name)["LocationConstraint"] == "eu-west-1"
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    (rule,) = world.client("s3").get_bucket_replication(Bucket="flotilla-lab-backups")[
        "ReplicationConfiguration"
    ]["Rules"]
    assert rule["Destination"]["Bucket"] == f"arn:aws:s3:::{name}"

    def ring(of: World) -> str:
        answer = of.client("ssm").get_parameter(
            Name="/flotilla/lab/mysql/backup_keys", WithDecryption=True
        )
        return str(answer["Parameter"]["Value"])

    assert ring(there) == ring(world)
    world.client("ssm").put_parameter(
        Name="/flotilla/lab/mysql/backup_keys", Value="rotated", Overwrite=True
    )
    assert planned(fleet()) == ["change secret copy /flotilla/lab/mysql/backup_keys"]
    parts.converge(fleet())
    assert ring(there) == "rotated"


def test_a_copy_that_is_not_wanted_any_more_is_left_and_not_filled(fleet):
    world = fleet()
    backups = world.settings.backups.model_copy(update={"copy_region": None})
    world = World(world.settings.model_copy(update={"backups": backups}))
    assert planned(world) == ["change bucket flotilla-lab-backups (not copied any more)"]
    parts.converge(world)
    assert planned(world) == []
    assert fleet().client("s3").head_bucket(Bucket="flotilla-lab-backups-copy")


def test_a_role_that_was_widened_by_hand_is_narrowed_again(fleet):
    fleet().client("iam").put_role_policy(
        RoleName="flotilla-lab-app",
        PolicyName="flotilla-lab-app",
        PolicyDocument=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
            }
        ),
    )
    (only,) = planned(fleet())
    assert only.startswith("change IAM policy flotilla-lab-app")
    parts.converge(fleet())
    assert planned(fleet()) == []


def test_what_aws_does_not_keep_is_an_error_and_stops_the_parts_after_it(fleet, monkeypatch):
    world = fleet()
    s3 = world.client("s3")
    s3.delete_public_access_block(Bucket="flotilla-lab-audit")
    with monkeypatch.context() as broken:
        broken.setattr(s3, "put_public_access_block", lambda **_arguments: None)
        with pytest.raises(FlotillaError, match="still differs: change bucket flotilla-lab-audit"):
            parts.converge(fleet(app=5))
    assert "app-5" not in by_name(hosts.instances(world))

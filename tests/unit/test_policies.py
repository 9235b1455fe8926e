"""What a host of each role may do at AWS: every grant has a use, and the neighbours' things are
out of reach.
"""

from __future__ import annotations

import json

import pytest

from flotilla.provision.identity import COPY, HOLDERS, files
from flotilla.provision.world import DATA
from flotilla.rules.policies import allows, merge, problems, render

VALUES = {
    "partition": "aws",
    "region": "eu-central-1",
    "account": "123456789012",
    "fleet": "shop",
    "env": "blue",
    "namespace": "Flotilla",
}
ARN = "arn:aws:{service}:eu-central-1:123456789012:{rest}"
DATABASE = {
    "aws:ResourceTag/Fleet": "shop",
    "aws:ResourceTag/Env": "blue",
    "aws:ResourceTag/Role": "mysql",
}
BALANCER = DATABASE | {"aws:ResourceTag/Role": "lb"}
SCRATCH_HOST = DATABASE | {"aws:ResourceTag/Role": "restore"}
LAUNCHED = {
    "aws:RequestTag/Fleet": "shop",
    "aws:RequestTag/Env": "blue",
    "aws:RequestTag/Role": "restore",
}
MADE = LAUNCHED | {"ec2:CreateAction": "RunInstances"}
OWN_SUBNET = {"aws:ResourceTag/Fleet": "shop", "aws:ResourceTag/Env": "blue"}
SUBNET = "arn:aws:ec2:eu-central-1:123456789012:subnet/subnet-1"
IMAGE = "arn:aws:ec2:eu-central-1::image/ami-1"
PASSED = {"iam:PassedToService": "ec2.amazonaws.com"}
SERVER = DATABASE | {"aws:ResourceTag/Role": "app"}
NAMING = {"aws:TagKeys": "Name", "aws:RequestTag/Name": "app-4"}
TABLE = ARN.format(service="dynamodb", rest="table/shop-blue-clusters")
RECORD = {"dynamodb:LeadingKeys": "mysql"}
LOGS = ARN.format(service="logs", rest="log-group:/shop/blue/lb")
INSTANCE = ARN.format(service="ec2", rest="instance/i-1")
ADDRESS = ARN.format(service="ec2", rest="elastic-ip/eipalloc-1")
EDGE = {"aws:ResourceTag/Name": "shop-blue-edge"}


def document(role: str) -> dict:
    found = [json.loads((DATA / name).read_text()) for name in files(role)]
    return render(merge(found), VALUES | {"role": role})


def parameter(path: str) -> str:
    return ARN.format(service="ssm", rest=f"parameter{path}")


def group(name: str) -> str:
    return ARN.format(
        service="autoscaling", rest=f"autoScalingGroup:a1:autoScalingGroupName/{name}"
    )


@pytest.mark.parametrize("role", [*HOLDERS, COPY])
def test_no_role_is_granted_more_than_it_names(role):
    assert problems(document(role)) == []


@pytest.mark.parametrize("role", [*HOLDERS, COPY])
def test_no_role_may_delete_anything_or_change_who_may_what(role):
    actions = {a for s in document(role)["Statement"] for a in _list(s["Action"])}
    # Who may launch a host for a restore drill gives it that role; which one is tested below.
    actions -= {"iam:PassRole"} if role == "mysql" else set()
    assert {a for a in actions if a.startswith("kms:")} <= {"kms:Decrypt"}
    assert not {a for a in actions if "Delete" in a or a.startswith(("iam:", "sts:"))}


KEY = ARN.format(service="kms", rest="key/k-1")


def opening(path: str, service: str = "ssm") -> dict[str, str]:
    """What KMS is told when SSM opens a parameter."""
    return {
        "kms:ViaService": f"{service}.eu-central-1.amazonaws.com",
        "kms:EncryptionContext:PARAMETER_ARN": parameter(path),
    }


MAY = [
    ("redis", "kms:Decrypt", KEY, opening("/shop/blue/redis/app_password")),
    ("mysql", "kms:Decrypt", KEY, opening("/shop/blue/mysql/watcher_password")),
    ("app", "kms:Decrypt", KEY, opening("/shop/blue/mysql/app_password")),
    ("app", "kms:Decrypt", KEY, opening("/shop/blue/redis/app_password")),
    ("restore", "kms:Decrypt", KEY, opening("/shop/blue/mysql/backup_keys")),
    ("bastion", "s3:GetObject", "arn:aws:s3:::shop-blue-artifacts/access/trust.json", {}),
    ("lb", "ec2:AssociateAddress", ADDRESS, EDGE),
    ("lb", "ec2:AssociateAddress", INSTANCE, BALANCER),
    ("lb", "ec2:DescribeAddresses", "*", {}),
    ("lb", "ec2:DescribeInstances", "*", {}),
    ("lb", "autoscaling:DescribeAutoScalingGroups", "*", {}),
    ("lb", "autoscaling:CompleteLifecycleAction", group("shop-blue-app"), {}),
    ("lb", "ssm:PutParameter", parameter("/shop/blue/lb/certificate"), {}),
    ("lb", "ssm:PutParameter", parameter("/shop/blue/lb/acme/attempts"), {}),
    ("mysql", "dynamodb:GetItem", TABLE, RECORD),
    ("mysql", "dynamodb:UpdateItem", TABLE, RECORD),
    ("mysql", "ec2:StopInstances", INSTANCE, DATABASE),
    ("mysql", "ec2:DescribeInstances", "*", {}),
    ("mysql", "s3:PutObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("mysql", "s3:GetObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("mysql", "s3:ListBucket", "arn:aws:s3:::shop-blue-backups", {"s3:prefix": "mysql/full/"}),
    ("mysql", "dynamodb:UpdateItem", TABLE, {"dynamodb:LeadingKeys": "mysql-archive"}),
    ("mysql", "dynamodb:UpdateItem", TABLE, {"dynamodb:LeadingKeys": "mysql-backup"}),
    ("mysql", "dynamodb:UpdateItem", TABLE, {"dynamodb:LeadingKeys": "mysql-drill"}),
    ("mysql", "ec2:RunInstances", INSTANCE, LAUNCHED),
    ("mysql", "ec2:RunInstances", SUBNET, OWN_SUBNET),
    ("mysql", "ec2:RunInstances", IMAGE, {"ec2:Owner": "123456789012"}),
    ("mysql", "ec2:CreateTags", INSTANCE, MADE),
    ("mysql", "iam:PassRole", "arn:aws:iam::123456789012:role/shop-blue-restore", PASSED),
    ("mysql", "ec2:TerminateInstances", INSTANCE, SCRATCH_HOST),
    ("restore", "s3:GetObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("restore", "s3:ListBucket", "arn:aws:s3:::shop-blue-backups", {"s3:prefix": "mysql/full/"}),
    ("restore", "s3:PutObject", "arn:aws:s3:::shop-blue-backups/mysql/drill/work/1", {}),
    ("restore", "ssm:GetParameters", parameter("/shop/blue/mysql/backup_keys"), {}),
    ("copy", "s3:GetReplicationConfiguration", "arn:aws:s3:::shop-blue-backups", {}),
    ("copy", "s3:ListBucket", "arn:aws:s3:::shop-blue-backups", {}),
    *(
        ("copy", f"s3:{action}", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {})
        for action in (
            "GetObjectVersionForReplication",
            "GetObjectVersionAcl",
            "GetObjectVersionTagging",
            "GetObjectRetention",
            "GetObjectLegalHold",
        )
    ),
    ("copy", "s3:ReplicateObject", "arn:aws:s3:::shop-blue-backups-copy/mysql/full/1", {}),
    ("copy", "s3:ReplicateTags", "arn:aws:s3:::shop-blue-backups-copy/mysql/full/1", {}),
    ("app", "s3:GetObject", "arn:aws:s3:::shop-blue-artifacts/guestbook/1.tar", {}),
    ("app", "s3:GetObject", "arn:aws:s3:::shop-blue-artifacts/join/app/bundle.json", {}),
    ("app", "ssm:GetParameters", parameter("/shop/blue/mysql/app_password"), {}),
    ("app", "ssm:GetParameters", parameter("/shop/blue/redis/app_password"), {}),
    ("app", "ssm:GetParameters", parameter("/shop/blue/app/secret_key"), {}),
    ("app", "ec2:DescribeInstances", "*", {}),
    ("app", "ec2:CreateTags", INSTANCE, SERVER | NAMING),
    ("redis", "s3:PutObject", "arn:aws:s3:::shop-blue-backups/redis/full/1", {}),
    ("redis", "s3:GetObject", "arn:aws:s3:::shop-blue-backups/redis/full/1", {}),
    ("redis", "s3:ListBucket", "arn:aws:s3:::shop-blue-backups", {"s3:prefix": "redis/full/"}),
    ("redis", "dynamodb:GetItem", TABLE, {"dynamodb:LeadingKeys": "redis-backup"}),
    ("redis", "dynamodb:UpdateItem", TABLE, {"dynamodb:LeadingKeys": "redis-backup"}),
    ("redis", "ssm:GetParameter", parameter("/shop/blue/redis/app_password"), {}),
    ("redis", "ssm:GetParameters", parameter("/shop/blue/redis/app_password"), {}),
    ("redis", "ssm:GetParametersByPath", parameter("/shop/blue/redis"), {}),
    ("redis", "ssm:GetParameter", parameter("/shop/blue/redis/tls_issuer"), {}),
    ("mysql", "ssm:GetParameter", parameter("/shop/blue/mysql/tls_issuer"), {}),
    ("bastion", "cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "Flotilla"}),
    ("lb", "logs:CreateLogGroup", LOGS, {}),
    ("lb", "logs:PutRetentionPolicy", LOGS, {}),
    ("lb", "logs:CreateLogStream", f"{LOGS}:log-stream:i-1", {}),
    ("lb", "logs:DescribeLogStreams", f"{LOGS}:log-stream:", {}),
    ("lb", "logs:PutLogEvents", f"{LOGS}:log-stream:i-1", {}),
]
MAY_NOT = [
    ("redis", "kms:Decrypt", KEY, {}),
    ("redis", "kms:Decrypt", KEY, opening("/shop/blue/mysql/app_password")),
    ("redis", "kms:Decrypt", KEY, opening("/shop/green/redis/app_password")),
    ("app", "kms:Decrypt", KEY, opening("/shop/blue/mysql/root_password")),
    ("app", "kms:Decrypt", KEY, opening("/shop/blue/mysql/app_password", service="s3")),
    ("restore", "kms:Decrypt", KEY, opening("/shop/blue/mysql/root_password")),
    ("lb", "ec2:AssociateAddress", ADDRESS, {"aws:ResourceTag/Name": "shop-green-edge"}),
    ("lb", "ec2:AssociateAddress", INSTANCE, DATABASE),
    ("lb", "ec2:StopInstances", INSTANCE, DATABASE),
    ("lb", "autoscaling:CompleteLifecycleAction", group("shop-green-app"), {}),
    ("lb", "ssm:PutParameter", parameter("/shop/green/lb/certificate"), {}),
    ("lb", "ssm:PutParameter", parameter("/shop/blue/mysql/app_password"), {}),
    ("app", "ssm:PutParameter", parameter("/shop/blue/lb/certificate"), {}),
    ("mysql", "ec2:StopInstances", INSTANCE, BALANCER),
    ("mysql", "ec2:StopInstances", INSTANCE, DATABASE | {"aws:ResourceTag/Env": "green"}),
    ("mysql", "ec2:TerminateInstances", INSTANCE, DATABASE),
    ("mysql", "dynamodb:PutItem", TABLE, RECORD),
    ("mysql", "dynamodb:UpdateItem", TABLE, {"dynamodb:LeadingKeys": "redis"}),
    ("mysql", "dynamodb:DeleteItem", TABLE, RECORD),
    ("mysql", "s3:DeleteObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("mysql", "s3:PutObject", "arn:aws:s3:::shop-blue-audit/1", {}),
    ("mysql", "s3:ListBucket", "arn:aws:s3:::shop-blue-backups", {"s3:prefix": "redis/"}),
    ("mysql", "ec2:RunInstances", INSTANCE, LAUNCHED | {"aws:RequestTag/Role": "mysql"}),
    ("mysql", "ec2:RunInstances", SUBNET, OWN_SUBNET | {"aws:ResourceTag/Env": "green"}),
    ("mysql", "ec2:RunInstances", IMAGE, {"ec2:Owner": "amazon"}),
    ("mysql", "ec2:CreateTags", INSTANCE, LAUNCHED),
    ("mysql", "iam:PassRole", "arn:aws:iam::123456789012:role/shop-blue-mysql", PASSED),
    ("mysql", "iam:PassRole", "arn:aws:iam::123456789012:role/shop-blue-restore", {}),
    ("mysql", "ec2:TerminateInstances", INSTANCE, SERVER),
    ("copy", "s3:ReplicateObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("copy", "s3:GetObject", "arn:aws:s3:::shop-blue-backups-copy/mysql/full/1", {}),
    ("restore", "s3:PutObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("restore", "s3:PutObject", "arn:aws:s3:::shop-blue-backups/mysql/drill/1.json", {}),
    ("restore", "ssm:GetParameters", parameter("/shop/blue/mysql/app_password"), {}),
    ("restore", "dynamodb:GetItem", TABLE, RECORD),
    ("restore", "ec2:RunInstances", INSTANCE, LAUNCHED),
    ("redis", "s3:GetObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("redis", "s3:DeleteObject", "arn:aws:s3:::shop-blue-backups/redis/full/1", {}),
    ("redis", "s3:ListBucket", "arn:aws:s3:::shop-blue-backups", {"s3:prefix": "mysql/"}),
    ("redis", "dynamodb:UpdateItem", TABLE, {"dynamodb:LeadingKeys": "mysql"}),
    ("app", "s3:GetObject", "arn:aws:s3:::shop-blue-backups/mysql/full/1", {}),
    ("app", "s3:PutObject", "arn:aws:s3:::shop-blue-artifacts/guestbook/1.tar", {}),
    ("app", "ssm:GetParameter", parameter("/shop/blue/mysql/root_password"), {}),
    ("app", "ssm:GetParameters", parameter("/shop/blue/mysql/root_password"), {}),
    ("app", "ssm:GetParameters", parameter("/shop/blue/redis/sentinel_password"), {}),
    ("app", "ssm:GetParameters", parameter("/shop/blue/redis/tls_issuer"), {}),
    *(
        (role, "ssm:GetParameters", parameter("/shop/blue/operator/authority"), {})
        for role in ("bastion", "lb", "app", "mysql", "redis")
    ),
    ("app", "ec2:CreateTags", INSTANCE, DATABASE | NAMING),
    ("app", "ec2:CreateTags", INSTANCE, SERVER | NAMING | {"aws:RequestTag/Name": "mysql-1"}),
    ("app", "ec2:CreateTags", INSTANCE, SERVER | {"aws:TagKeys": "Role"}),
    ("app", "ssm:GetParameter", parameter("/shop/green/app/secret_key"), {}),
    ("app", "ssm:GetParametersByPath", parameter("/shop/blue"), {}),
    ("app", "logs:PutLogEvents", f"{LOGS}:log-stream:i-1", {}),
    *(
        (role, f"ssm:{action}", parameter(f"/shop/blue/ssh/{key}_ca"), {})
        for role in HOLDERS
        for action in ("GetParameter", "GetParameters", "GetParametersByPath")
        for key in ("user", "host")
    ),
    *(
        (role, "s3:PutObject", "arn:aws:s3:::shop-blue-artifacts/access/trust.json", {})
        for role in HOLDERS
    ),
    ("bastion", "s3:GetObject", "arn:aws:s3:::shop-blue-artifacts/guestbook/1.tar", {}),
    ("bastion", "cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "AWS/EC2"}),
    ("bastion", "cloudwatch:PutMetricData", "*", {}),
    ("redis", "dynamodb:GetItem", TABLE, {"dynamodb:LeadingKeys": "redis"}),
]


@pytest.mark.parametrize(("role", "action", "resource", "context"), MAY)
def test_a_role_may_do_its_work(role, action, resource, context):
    assert allows(document(role), action, resource, context)


@pytest.mark.parametrize(("role", "action", "resource", "context"), MAY_NOT)
def test_a_role_may_not_reach_further(role, action, resource, context):
    assert not allows(document(role), action, resource, context)


def test_every_grant_is_one_of_the_calls_above():
    statements = [one for role in (*HOLDERS, COPY) for one in document(role)["Statement"]]
    granted = {action for one in statements for action in _list(one["Action"])}
    assert granted == {action for _, action, _, _ in MAY}


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ({"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::b"}, "whole service"),
        ({"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}, "every resource"),
        ({"Effect": "Allow", "NotAction": "s3:GetObject", "Resource": "x"}, "only plain Allow"),
    ],
)
def test_a_wide_grant_is_found(statement, complaint):
    assert complaint in problems({"Statement": [{"Sid": "Wide", **statement}]})[0]


def test_a_placeholder_without_a_value_is_an_error():
    with pytest.raises(ValueError, match="<fleet>"):
        render({"Statement": [{"Resource": "arn:aws:s3:::<fleet>-backups/*"}]}, {"env": "blue"})


def test_an_unknown_condition_is_an_error_and_not_a_yes():
    wide = {"Action": "a:B", "Resource": "*", "Condition": {"IpAddress": {"aws:SourceIp": "::/0"}}}
    with pytest.raises(ValueError, match="IpAddress"):
        allows({"Statement": [wide]}, "a:B", "*", {"aws:SourceIp": "192.0.2.1"})


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value

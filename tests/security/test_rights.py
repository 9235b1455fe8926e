"""Rights are compared with what was done, in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from security import rights
from security.rights import Used

from flotilla.provision.identity import HOLDERS, files
from flotilla.provision.world import data
from flotilla.rules.policies import merge

POLICIES = {role: merge(data(name) for name in files(role)) for role in HOLDERS}
EXCUSED = yaml.safe_load((Path(__file__).parent / "unused_rights.yml").read_text())


@pytest.mark.parametrize(
    ("service", "called", "action"),
    [
        ("monitoring", "PutMetricData", "cloudwatch:PutMetricData"),
        ("ec2", "StopInstances", "ec2:StopInstances"),
        ("s3", "GET /b", "s3:ListBucket"),
        ("s3", "GET /b/", "s3:ListBucket"),
        ("s3", "HEAD /b/a%2Fc", "s3:GetObject"),
        ("s3", "PUT /b/a/c", "s3:PutObject"),
        ("s3", "POST /b/a/c", "s3:PutObject"),
        ("s3", "DELETE /b/a/c", "s3:DELETE of an object"),
        ("s3", "PUT /b", "s3:PUT of a bucket"),
    ],
)
def test_a_call_is_known_by_the_action_of_policies(service, called, action):
    assert rights.action(service, called) == action


def line(role, service, called, status=200):
    return {"role": role, "service": service, "action": called, "status": status}


def test_only_hosts_of_the_fleet_are_looked_at():
    record = [
        line("shop-blue-app", "ec2", "DescribeInstances"),
        line("shop-green-app", "ec2", "StopInstances"),
        line("x-shop-blue-app", "ec2", "StopInstances"),
        line(None, "ec2", "StopInstances"),
    ]
    assert list(rights.calls(record, "shop-blue")) == [(Used("app", "ec2:DescribeInstances"), 200)]


def test_a_refusal_of_ssm_is_one_but_for_what_a_test_provokes():
    refused = line("shop-blue-app", "ssm", "GetParameters", 400) | {
        "error": "AccessDeniedException"
    }
    record = [
        refused | {"resource": f"arn:aws:ssm:x:1:parameter/shop/blue/{name}"}
        for name in ("mysql/root_password", "mysql/app_password")
    ]
    assert list(rights.calls(record, "shop-blue")) == [(Used("app", "ssm:GetParameters"), 403)]


def test_every_right_that_nobody_uses_is_named_and_no_other():
    may = rights.permitted(POLICIES)
    assert rights.unused(may, may, []) == []
    for one in may:
        assert rights.unused(may, may - {one}, []) == [f"{one.role} may {one.action} and never did"]
        assert rights.unused(may, may - {one}, [one]) == []
        assert rights.unused(may, may, [one]) == [
            f"{one.role} did {one.action}: no exception needed"
        ]
    assert "no right" in rights.unused(may, may, [Used("app", "ec2:StopInstances")])[0]


def test_what_was_refused_is_named_and_what_aws_would_refuse():
    may = rights.permitted(POLICIES)
    fine = Used("app", "s3:GetObject")
    assert rights.refusals([(fine, 200), (fine, 404)], may) == []
    assert rights.refusals([(fine, 403)], may) == ["app was refused s3:GetObject"]
    beyond = Used("app", "ec2:StopInstances")
    assert rights.refusals([(beyond, 200)], may) == ["app did ec2:StopInstances, which AWS refuses"]


def test_every_exception_is_a_right_and_has_a_reason():
    may = rights.permitted(POLICIES)
    for entry in EXCUSED:
        assert entry["why"]
        assert {Used(role, entry["action"]) for role in entry["roles"]} <= may

"""What a host that starts by itself finds in S3: the bundle of its tier and the current release.

Documents of JSON in the bucket of releases, each with the SHA-256 of its bytes beside it. Only
operators write there; the hosts read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError
from flotilla.rules import join as rules
from flotilla.settings import Settings

BUNDLE = "bundle"
RELEASE = "release"
_ABSENT = {"404", "NoSuchKey", "NotFound"}


def publish(
    settings: Settings, role: str, name: str, document: Mapping[str, Any], *, dry: bool = False
) -> bool:
    """Keep a document where new hosts of ``role`` look; whether it differs from what was there.

    ``dry`` only tells. Raises FlotillaError when it cannot be read back as written.
    """
    bucket, key, body = settings.name_of("artifacts"), rules.key(role, name), rules.body(document)
    sha256 = hashlib.sha256(body).hexdigest()
    if _sha256(settings, bucket, key) == sha256:
        return False
    if dry:
        return True
    with described(settings, f"publish {key}"):
        client(settings, "s3").put_object(
            Bucket=bucket,
            Key=key,
            Body=body,
            ContentType="application/json",
            Metadata={"sha256": sha256},
        )
    if read(settings, role, name) != json.loads(body):
        raise FlotillaError(
            f"s3://{bucket}/{key} is not what was just written",
            why="somebody else publishes at the same time",
            next="the same command again",
        )
    return True


def read(settings: Settings, role: str, name: str) -> dict[str, Any] | None:
    """A published document; None where there is none."""
    bucket, key = settings.name_of("artifacts"), rules.key(role, name)
    with described(settings, f"read {key}"):
        try:
            answer = client(settings, "s3").get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if code(error) in _ABSENT:
                return None
            raise
        document: dict[str, Any] = json.loads(answer["Body"].read())
    return document


def point(settings: Settings, role: str, version: str, sha256: str) -> bool:
    """Make ``version`` the release that new hosts of ``role`` start; whether it was another one."""
    return publish(settings, role, RELEASE, {"version": version, "sha256": sha256})


def vpc(settings: Settings) -> str:
    """The network of the fleet. Raises FlotillaError when there is none."""
    wanted = {"Name": settings.prefix, "Fleet": settings.name, "Env": settings.env}
    filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in wanted.items()]
    with described(settings, "look up the fleet's network"):
        found = client(settings, "ec2").describe_vpcs(Filters=filters)["Vpcs"]
    if len(found) != 1:
        raise FlotillaError(
            f"{len(found)} networks are named {settings.name_of('vpc')}", next="fab fleet.provision"
        )
    return str(found[0]["VpcId"])


def _sha256(settings: Settings, bucket: str, key: str) -> str:
    with described(settings, f"look for {key}"):
        try:
            head = client(settings, "s3").head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if code(error) in _ABSENT:
                return ""
            raise
    return str(head["Metadata"].get("sha256", ""))

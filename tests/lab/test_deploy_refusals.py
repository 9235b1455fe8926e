"""Releases that cannot be deployed: refused with the next command, and no host was touched."""

from __future__ import annotations

import pytest
from guests import needs_lab
from rolling import Rolling
from typed import fab

from flotilla.aws.session import client
from flotilla.rules.release import key

pytestmark = [needs_lab, pytest.mark.drill]


def test_an_unknown_version_is_refused_with_those_that_exist(fleet: Rolling) -> None:
    newest = fab("app.list")[0]
    told = fleet.deploy("nonesuch", code=5)
    assert newest["version"] in told["error"]["what"]
    fleet.is_whole(fleet.version)


def test_an_artifact_that_somebody_changed_is_refused(fleet: Rolling) -> None:
    version = fleet.fresh()
    bucket, s3 = fleet.settings.name_of("artifacts"), client(fleet.settings, "s3")
    metadata = s3.head_object(Bucket=bucket, Key=key(version))["Metadata"]
    s3.put_object(Bucket=bucket, Key=key(version), Body=b"not it", Metadata=metadata)
    told = fleet.deploy(version, code=3)
    assert f"the artifact of release {version} has the checksum" in told["error"]["what"]
    assert metadata["sha256"][:12] in told["error"]["what"]
    fleet.is_whole(fleet.version)


def test_an_artifact_that_somebody_deleted_is_refused(fleet: Rolling) -> None:
    version = fleet.fresh()
    bucket = fleet.settings.name_of("artifacts")
    client(fleet.settings, "s3").delete_object(Bucket=bucket, Key=key(version))
    told = fleet.deploy(version, code=3)
    assert f"the artifact of release {version} is missing" in told["error"]["what"]
    assert f"fab app.release --version {version}" in told["error"]["next"]
    fleet.is_whole(fleet.version)

"""Real servers for the tests of this folder; skipped, with the reason, where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer
from mysqld.binaries import Binaries, NoImageError, binaries
from mysqld.commits import ids
from mysqld.trio import Trio, prepare_account, running
from unit.fleets import maker

from flotilla.backup.bucket import Bucket
from flotilla.settings import Settings
from flotilla.wait import until


@pytest.fixture(scope="session")
def programs() -> Binaries:
    """mysqld itself."""
    try:
        return binaries()
    except NoImageError as error:
        pytest.skip(str(error))


@pytest.fixture
def api_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """An AWS account of its own, reachable from other processes too."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # One process has one account, however many servers it starts.
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10).raise_for_status()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    yield server
    server.stop()


@pytest.fixture
def api(api_server: ThreadedMotoServer) -> str:
    """Where that account is: a URL."""
    host, port = api_server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def bucket(api: str) -> Bucket:
    """An empty bucket for backups, in that account."""
    s3 = boto3.client("s3", endpoint_url=api, region_name="eu-central-1")
    s3.create_bucket(
        Bucket="backups", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return Bucket(s3, "backups")


@pytest.fixture
def settings(api: str, tmp_path) -> Settings:
    """The lab's fleet in that account, provisioned as far as MySQL needs it."""
    made = maker(tmp_path)().settings
    prepare_account(made)
    return made


@pytest.fixture
def trio(programs: Binaries, settings: Settings) -> Iterator[Trio]:
    """A whole cluster: mysql-1 is primary of term 1, the others follow and acknowledge."""
    with running(programs, settings) as made:
        yield made


@pytest.fixture
def table(trio: Trio) -> str:
    """A table with the row 0, on every member."""
    name = f"{trio.settings.mysql.database}.t"
    trio.rows("mysql-1", f"CREATE TABLE {name} (id INT PRIMARY KEY)")
    trio.rows("mysql-1", f"INSERT INTO {name} VALUES (0)")
    for replica in trio.replicas:
        until(lambda r=replica: ids(trio, r.name, name) == [0], seconds=10, every=0.05)
    return name

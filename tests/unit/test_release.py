"""Releasing a version: what is kept, what is refused. Against moto's S3 over HTTP."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from flotilla import config
from flotilla.aws.session import client
from flotilla.errors import BadOption, FlotillaError, Refused, Unreachable
from flotilla.release import publish, releases
from flotilla.rules import release as rules
from flotilla.settings import Settings


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def unprovisioned(endpoint: str, tmp_path: Path) -> Settings:
    """The lab's settings with an API of our own and a scratch folder of our own."""
    keys = tmp_path / "credentials"
    keys.write_text("[lab]\naws_access_key_id = a\naws_secret_access_key = b\n")
    lab = config.load("lab")
    aws = lab.aws.model_copy(update={"endpoint_url": endpoint, "credentials_file": str(keys)})
    name = "t" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    return lab.model_copy(update={"aws": aws, "name": name}).placed(tmp_path, "")


@pytest.fixture
def settings(unprovisioned: Settings) -> Settings:
    client(unprovisioned, "s3").create_bucket(
        Bucket=unprovisioned.name_of("artifacts"),
        CreateBucketConfiguration={"LocationConstraint": unprovisioned.region},
    )
    return unprovisioned


def built_by(settings: Settings, command: str) -> Settings:
    application = settings.application.model_copy(update={"build": command})
    return settings.model_copy(update={"application": application})


def tarball(folder: Path, content: str, name: str = "app.py") -> Path:
    source = folder / "source.txt"
    source.write_text(content)
    path = folder / f"artifact-{hashlib.sha256(content.encode()).hexdigest()[:6]}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(source, name)
    return path


def test_a_release_can_be_read_back_with_its_checksum(settings: Settings, tmp_path: Path) -> None:
    path = tarball(tmp_path, "one")
    made = publish(settings, "1.0", artifact=str(path))
    assert not made.already
    assert made.release.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    stored = client(settings, "s3").get_object(
        Bucket=settings.name_of("artifacts"), Key="app/1.0.tar.gz"
    )
    assert stored["Body"].read() == path.read_bytes()


def test_the_same_content_again_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    path = str(tarball(tmp_path, "one"))
    first = publish(settings, "1.0", artifact=path)
    again = publish(settings, "1.0", artifact=path)
    assert again.already
    assert again.release == first.release


def test_a_version_is_never_given_other_content(settings: Settings, tmp_path: Path) -> None:
    first = publish(settings, "1.0", artifact=str(tarball(tmp_path, "one")))
    with pytest.raises(Refused, match="released already with other content"):
        publish(settings, "1.0", artifact=str(tarball(tmp_path, "two")))
    assert [one.sha256 for one in releases(settings)] == [first.release.sha256]


def test_releases_are_listed_newest_first(settings: Settings, tmp_path: Path) -> None:
    for version in ("b", "a", "c"):
        publish(settings, version, artifact=str(tarball(tmp_path, version)))
    listed = releases(settings)
    assert {one.version for one in listed} == {"a", "b", "c"}
    assert [one.released_at for one in listed] == sorted(
        (one.released_at for one in listed), reverse=True
    )


def test_the_build_command_makes_the_artifact(settings: Settings, tmp_path: Path) -> None:
    path = tarball(tmp_path, "built")
    building = built_by(settings, f"cp {path} {{output}}")
    assert publish(building, "2").release.size_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("false {output}", "exit code 1"),
        ("true {output}", "wrote nothing"),
        ("/no/such/program {output}", "No such file"),
    ],
)
def test_a_build_that_fails_releases_nothing(settings: Settings, command: str, why: str) -> None:
    with pytest.raises(FlotillaError, match=why):
        publish(built_by(settings, command), "3")
    assert releases(settings) == []


def test_an_artifact_may_come_from_another_bucket(settings: Settings, tmp_path: Path) -> None:
    path = tarball(tmp_path, "elsewhere")
    client(settings, "s3").upload_file(str(path), settings.name_of("artifacts"), "in/x.tgz")
    made = publish(settings, "9", artifact=f"s3://{settings.name_of('artifacts')}/in/x.tgz")
    assert made.release.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(Refused, match="no object"):
        publish(settings, "10", artifact="s3://nobody-has-this/in/x.tgz")


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside"])
def test_an_artifact_that_reaches_outside_of_its_folder_is_refused(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(Refused, match="outside"):
        publish(settings, "1", artifact=str(path))


def test_an_artifact_that_is_no_tarball_or_is_not_there_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(Refused, match="cannot be deployed"):
        publish(settings, "1", artifact=str(tmp_path / "text"))
    with pytest.raises(Refused, match="cannot be read"):
        publish(settings, "1", artifact=str(tmp_path / "nothing"))


def test_a_fleet_without_a_bucket_is_told_to_provision(
    unprovisioned: Settings, tmp_path: Path
) -> None:
    with pytest.raises(FlotillaError, match=r"does not exist.*fab fleet\.provision"):
        publish(unprovisioned, "1", artifact=str(tarball(tmp_path, "one")))


def test_an_api_that_is_down_is_unreachable(settings: Settings, tmp_path: Path) -> None:
    down = settings.aws.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(Unreachable, match=r"fab lab\.up"):
        publish(
            settings.model_copy(update={"aws": down}),
            "1",
            artifact=str(tarball(tmp_path, "one")),
        )


@pytest.mark.parametrize("version", ["", "../1", "a b", "-x", "x" * 65, "é", "1\n"])
def test_a_version_that_cannot_name_a_folder_is_a_bad_option(
    settings: Settings, version: str
) -> None:
    with pytest.raises(BadOption):
        publish(settings, version)


def test_keys_and_versions_are_each_others_inverse() -> None:
    assert rules.version_of(rules.key("2.1-rc_3")) == "2.1-rc_3"
    assert rules.version_of("app/../x.tar.gz") is None
    assert rules.version_of("other/1.tar.gz") is None


def test_versions_made_from_the_time_sort_in_its_order() -> None:
    early = rules.default_version(datetime(2026, 9, 30, 9, 5, tzinfo=UTC))
    late = rules.default_version(datetime(2026, 10, 1, 8, 0, tzinfo=UTC))
    assert early < late
    assert rules.why_not_a_version(early) is None

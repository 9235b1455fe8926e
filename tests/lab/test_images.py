"""Images baked by the real Packer and booted, as a fleet of their own: the standing fleet's images
stay as they are.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from guests import REPO, needs_lab

from flotilla import config, images
from flotilla.aws import images as edge
from flotilla.aws import workbench
from flotilla.aws.session import client
from flotilla.errors import HostFailed
from flotilla.rules import sbom as rules
from flotilla.settings import Settings

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.thorough]


@dataclass(frozen=True)
class Fleet:
    """A copy of the repository, and a fleet of another name that bakes from it."""

    settings: Settings
    said: list[str]

    @property
    def root(self) -> Path:
        return self.settings.root

    def bake(self) -> list[images.Done]:
        request = images.plan(self.settings, ["bastion"])
        return images.bake(self.settings, request, say=self.said.append)

    def broken_by(self, task: str) -> None:
        """Add a task to what the bastion's image installs."""
        path = self.root / "roles/bastion/tasks/install.yml"
        path.write_text(path.read_text() + task)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("repo")
    for name in ("roles", "playbooks", "packer"):
        shutil.copytree(REPO / name, root / name, symlinks=True)
    shutil.copy(REPO / "ansible.cfg", root)
    real = config.load("lab")
    aws = real.aws.model_copy(update={"credentials_file": str(REPO / real.aws.credentials_file)})
    settings = real.model_copy(update={"name": "bakery", "aws": aws}).placed(root, "")
    yield Fleet(settings, [])
    for image in edge.ours(settings):
        edge.remove(settings, image)
    s3, bucket = client(settings, "s3"), settings.name_of("artifacts")
    for one in s3.list_objects_v2(Bucket=bucket).get("Contents", ()):
        s3.delete_object(Bucket=bucket, Key=one["Key"])
    s3.delete_bucket(Bucket=bucket)


@pytest.fixture(scope="module")
def baked(fleet: Fleet) -> dict[str, images.Done]:
    return {done.role: done for done in fleet.bake()}


def test_an_image_is_tested_encrypted_dated_and_says_where_it_comes_from(fleet, baked):
    image = images.latest_tested(fleet.settings, "bastion")
    assert image.image_id == baked["bastion"].image_id
    found = edge.describe(fleet.settings, image.image_id)
    assert all(disk["Ebs"]["Encrypted"] for disk in found["BlockDeviceMappings"])
    assert found["ImdsSupport"] == "v2.0"
    assert found["DeprecationTime"]
    assert image.source_image == baked["base"].image_id
    assert image.build_id
    assert image.snapshots


def test_an_image_says_what_is_in_it_and_what_it_adds_to_its_base(fleet, baked):
    def bill(role):
        return images.sbom.load(fleet.settings, images.find(fleet.settings, role))

    base, bastion = rules.packages(bill("base")), rules.packages(bill("bastion"))
    assert {"openssh-server:amd64", "libc6:amd64"} <= base.keys()
    assert len(rules.debian_names(bill("base"))) == baked["base"].found["packages"]
    assert baked["bastion"].found["sbom_not_kept"] == ""
    assert base.keys() <= bastion.keys()
    assert rules.suite(bill("base")) == "trixie"


def test_the_status_of_an_image_says_what_apt_knows_of_it_or_why_it_knows_nothing(fleet, baked):
    states = {one.role: one for one in images.status(fleet.settings, say=fleet.said.append)}
    known = states["bastion"].report
    # The mirror it was baked from a minute ago is this machine's own.
    assert known.fixes.found is not None, known.fixes.why
    assert not [fix for fix in known.fixes.found if fix.security]
    assert known.flaws.found is not None or known.flaws.why
    assert states["mysql"].report is None


def test_what_did_not_change_is_not_baked_again(fleet, baked):
    again = {done.role: done for done in fleet.bake()}
    assert {done.action for done in again.values()} == {"reuse"}
    assert again["bastion"].image_id == baked["bastion"].image_id


def test_an_image_with_something_in_it_that_must_not_be_is_not_launched(fleet, baked):
    fleet.broken_by("""
- name: Install | Make a place for it
  ansible.builtin.file:
    path: /root/.aws
    state: directory
    mode: "0700"

- name: Install | Forget a credential
  ansible.builtin.copy:
    content: secret
    dest: /root/.aws/credentials
    mode: "0600"
""")
    with pytest.raises(HostFailed, match=r"/root/\.aws/credentials must not be in an image"):
        fleet.bake()
    assert images.latest_tested(fleet.settings, "bastion").image_id == baked["bastion"].image_id
    assert workbench.left_behind(fleet.settings) == set()


def test_a_role_that_fails_is_named_and_leaves_the_old_image_and_nothing_else(fleet, baked):
    before = {image.image_id for image in edge.ours(fleet.settings)}
    fleet.broken_by("""
- name: Install | Fail
  ansible.builtin.fail:
    msg: no such luck
""")
    with pytest.raises(HostFailed, match=r"could not bake bastion.*no such luck"):
        fleet.bake()
    assert {image.image_id for image in edge.ours(fleet.settings)} == before
    assert images.latest_tested(fleet.settings, "bastion").image_id == baked["bastion"].image_id
    assert workbench.left_behind(fleet.settings) == set()


def test_an_interrupted_bake_exits_99_and_leaves_neither_host_nor_image():
    settings = config.load("lab")
    before = {image.image_id for image in edge.ours(settings)}
    with subprocess.Popen(
        [
            Path(sys.executable).with_name("fab"),
            "images.bake",
            "--only",
            "base",
            "--force",
            "--yes",
        ],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr or ():
            if "Provisioning with Ansible" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(120) == 99
    assert {image.image_id for image in edge.ours(settings)} == before
    assert workbench.left_behind(settings) == set()

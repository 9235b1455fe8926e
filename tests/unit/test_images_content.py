"""What counts as a different image: the repository is copied, and one thing in it changed."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla import config, environment
from flotilla.errors import FlotillaError
from flotilla.images import check, content
from flotilla.rules.images import NAMES

ROOT = environment.root()
FLEET = "inventory/lab/group_vars/all/fleet.yml"


@pytest.fixture
def repo(tmp_path):
    for name in ("roles", "playbooks", "packer", "inventory/lab"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    return tmp_path


def hashes(repo, source="ami-source"):
    return content.hashes(config.load("lab", root=repo), source)


def changed(repo, act):
    before = hashes(repo)
    act()
    after = hashes(repo)
    return {name for name in NAMES if before[name] != after[name]}


def append(path, text="\n# changed\n"):
    path.write_text(path.read_text() + text)


def test_a_changed_role_is_a_new_image_for_those_who_have_the_role(repo):
    assert changed(repo, lambda: append(repo / "roles/haproxy/tasks/install.yml")) == {"app", "lb"}


def test_a_changed_base_or_source_image_is_a_new_image_for_all(repo):
    assert changed(repo, lambda: append(repo / "roles/base/tasks/install.yml")) == set(NAMES)
    assert not set(hashes(repo, "ami-1").values()) & set(hashes(repo, "ami-2").values())


def test_a_changed_template_or_playbook_is_a_new_image(repo):
    assert changed(repo, lambda: append(repo / "packer/common/source.pkr.hcl")) == set(NAMES)
    assert changed(repo, lambda: append(repo / "packer/redis/image.auto.pkrvars.hcl")) == {"redis"}
    assert changed(repo, lambda: append(repo / "playbooks/bake_image.yml")) == set(NAMES)


def test_a_new_file_and_a_renamed_file_count(repo):
    folder = repo / "roles/mysql/files"
    folder.mkdir(exist_ok=True)
    assert changed(repo, lambda: (folder / "a").write_text("x")) == {"mysql"}
    assert changed(repo, lambda: (folder / "a").rename(folder / "b")) == {"mysql"}


def test_documentation_counts_for_nothing(repo):
    assert changed(repo, lambda: append(repo / "roles/base/README.md")) == set()


def test_the_size_of_the_fleet_counts_for_nothing_and_its_package_source_does(repo):
    fleet = repo / FLEET

    def swap(old, new):
        text = fleet.read_text()
        assert old in text
        fleet.write_text(text.replace(old, new))

    assert changed(repo, lambda: swap("app: {count: 3", "app: {count: 9")) == set()
    assert changed(repo, lambda: swap("suite: sid", "suite: mysql-8.4-lts")) == set(NAMES)


def test_no_credential_and_no_path_of_this_machine_reaches_a_build_host():
    fleet = content.fleet(config.load("lab", root=ROOT))
    assert set(fleet["aws"]) == {"instance_endpoint_url"}


def test_a_playbook_that_does_not_list_its_roles_is_named(repo):
    (repo / "playbooks/image_lb.yml").write_text("---\n- hosts: all\n")
    with pytest.raises(FlotillaError, match=r"image_lb\.yml"):
        hashes(repo)


pieces = st.dictionaries(st.text(max_size=3), st.binary(max_size=3), max_size=4)


@given(pieces, pieces)
def test_two_contents_have_one_hash_only_if_they_are_the_same(one, other):
    assert (content.digest(one) == content.digest(other)) == (one == other)


@pytest.mark.parametrize("name", NAMES)
def test_every_image_says_what_it_must_be_and_has_what_every_image_has(name):
    expected = check.expected(ROOT, name)
    assert expected["units"]["ssh.service"] == ["enabled", "active"]
    assert "/root/.aws/credentials" in expected["absent"]
    assert all(isinstance(argv, list) for argv in expected["commands"].values())

"""Bills of materials: one document of what an image holds, and what differs between two."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st

from flotilla.images import facts
from flotilla.rules import sbom as rules

APT = {
    "/etc/apt/sources.list": "deb http://mirror.example/debian trixie main\n",
    "/etc/apt/preferences.d/mysql": "Package: *\nPin: release n=sid\nPin-Priority: 100\n",
}
# Epoch, tilde, plus, a source of another name and version.
PACKAGES = [
    ["git", "1:2.47.3-0+deb13u1", "amd64", "git", "1:2.47.3-0+deb13u1"],
    ["libstdc++6", "14.2.0-19", "amd64", "gcc-14", "14.2.0-19"],
    ["ca-certificates", "20250419~deb13u1", "all", "ca-certificates", "20250419~deb13u1"],
    ["cpp", "4:14.2.0-1", "amd64", "gcc-defaults", "1.220"],
]
PYTHON = [["Flask", "3.1.3", "/opt/x/site-packages"], ["Flask", "3.1.3", "/opt/y/site-packages"]]


def inventory(packages=PACKAGES, python=()):
    return {
        "distribution": "debian",
        "release": "13",
        "suite": "trixie",
        "architecture": "amd64",
        "packages": list(packages),
        "python": list(python),
        "apt": APT,
    }


def text(found, *, name="flotilla-app-20261123120000"):
    return rules.document(
        found,
        name=name,
        version="0123456789abcdef",
        made_at=datetime(2026, 11, 23, 12, 0, tzinfo=UTC),
        properties={"flotilla:image_id": "ami-1"},
    )


def document(packages=PACKAGES, python=()):
    return json.loads(text(inventory(packages, python)))


def test_the_document_is_valid_cyclonedx():
    found = text(inventory(python=PYTHON))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(found) is None
    assert json.loads(found)["metadata"]["component"]["name"] == "flotilla-app-20261123120000"


def test_the_same_image_makes_the_same_bytes_in_whatever_order_things_were_found():
    assert text(inventory()) == text(inventory(PACKAGES[::-1]))
    assert text(inventory()) != text(inventory(), name="flotilla-app-20261124120000")


def test_a_package_says_its_version_and_the_source_it_is_built_from():
    (one,) = [c for c in document()["components"] if c["name"] == "cpp"]
    assert one["version"] == "4:14.2.0-1"
    assert one["purl"].startswith("pkg:deb/debian/cpp@4")
    assert "upstream=gcc-defaults" in one["purl"]
    assert "distro=debian-13" in one["purl"]


def test_python_of_two_folders_is_two_components():
    assert len(rules.packages(document(python=PYTHON))) == len(PACKAGES) + 2
    assert rules.debian_names(document(python=PYTHON)) == sorted(row[0] for row in PACKAGES)


def test_what_apt_asks_and_dpkg_lists_comes_back_from_the_document():
    found = document()
    assert rules.apt(found) == APT
    assert (rules.suite(found), rules.architecture(found)) == ("trixie", "amd64")
    stanzas = rules.dpkg_status(found).split("\n\n")
    (cpp,) = [stanza for stanza in stanzas if stanza.startswith("Package: cpp\n")]
    assert "Version: 4:14.2.0-1" in cpp
    assert "Source: gcc-defaults (1.220)" in cpp


def test_differences_name_what_changed_came_and_went():
    newer = [
        ["git", "1:2.47.3-0+deb13u2", "amd64", "git", "1:2.47.3-0+deb13u2"],
        *PACKAGES[1:3],
        ["jq", "1.7", "amd64", "jq", "1.7"],
    ]
    assert list(map(str, rules.differences(document(), document(newer)))) == [
        "cpp:amd64 4:14.2.0-1 -> gone",
        "git:amd64 1:2.47.3-0+deb13u1 -> 1:2.47.3-0+deb13u2",
        "jq:amd64 1.7 is new",
    ]


NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,12}", fullmatch=True)
VERSIONS = st.from_regex(
    r"([0-9]:)?[0-9][A-Za-z0-9.+~]{0,8}(-[A-Za-z0-9.+~]{1,6})?", fullmatch=True
)


@given(st.dictionaries(NAMES, st.tuples(VERSIONS, NAMES, VERSIONS), max_size=6))
def test_every_name_and_version_survives_the_way_through_the_document(found):
    rows = [[name, version, "amd64", *source] for name, (version, *source) in found.items()]
    back = document(rows)
    assert rules.packages(back) == {f"{n}:amd64": v for n, (v, *_) in found.items()}
    for name, (version, source, source_version) in found.items():
        assert (
            f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\n"
            f"Source: {source} ({source_version})\nVersion: {version}\n"
        ) in rules.dpkg_status(back)
    assert rules.differences(back, back) == []


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="this machine has no dpkg")
def test_dpkg_reads_the_same_packages_from_the_document_as_from_this_machine(tmp_path):
    found = document(facts.packages())
    (tmp_path / "status").write_text(rules.dpkg_status(found))

    def listed(*options):
        form = "${Package} ${Version} ${Architecture} ${source:Package} ${source:Version}\n"
        argv = ["dpkg-query", *options, "--show", "-f", "${db:Status-Status} " + form]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return sorted(line for line in done.stdout.splitlines() if line.startswith("installed "))

    assert listed("--admindir", str(tmp_path)) == listed()
    assert len(listed()) > 50


def test_a_distribution_whose_metadata_was_cut_off_has_the_name_of_its_folder(
    tmp_path, monkeypatch
):
    for name, said in (("a-1.dist-info", ""), ("b-2.dist-info", "Name: b\nVersion: 2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "METADATA").write_text(said)
    monkeypatch.setattr(facts, "_NOT_DEBIANS", (str(tmp_path),))
    assert facts.distributions() == [
        ["a-1.dist-info", "", str(tmp_path)],
        ["b", "2", str(tmp_path)],
    ]

"""Fixes outstanding: what apt says of an image's packages, asked elsewhere, by a real apt."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flotilla.images import fixes
from flotilla.rules import fixes as rules
from flotilla.rules import sbom

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="this machine has no apt")

POLICY = """\
openssl:
  Installed: 3.5.1-1
  Candidate: 3.5.4-1~deb13u1
  Version table:
     3.5.4-1~deb13u1 500
        500 http://mirror.example/debian trixie/main amd64 Packages
     3.5.1-1+deb13u1 500
        500 http://mirror.example/debian-security trixie-security/main amd64 Packages
 *** 3.5.1-1 100
        100 /path/to/status
jq:
  Installed: 1.7.1-6
  Candidate: 1.7.1-6+deb13u1
  Version table:
     1.7.1-6+deb13u1 500
        500 http://mirror.example/debian trixie/main amd64 Packages
 *** 1.7.1-6 100
        100 /path/to/status
     1.7.1-5+deb13u9 500
        500 http://mirror.example/debian-security trixie-security/main amd64 Packages
git:
  Installed: 1:2.47.3-0
  Candidate: 1:2.47.3-0
  Version table:
 *** 1:2.47.3-0 500
        500 http://mirror.example/debian trixie/main amd64 Packages
        100 /path/to/status
ours:
  Installed: 1.0
  Candidate: 1.0
  Version table:
 *** 1.0 100
        100 /path/to/status
""".splitlines()


def test_a_security_fix_counts_although_a_point_release_went_past_it():
    assert rules.policy(POLICY) == (
        rules.Fix("openssl", "3.5.1-1", "3.5.4-1~deb13u1", security=True),
        rules.Fix("jq", "1.7.1-6", "1.7.1-6+deb13u1", security=False),
    )


def test_what_debsecan_prints_is_read():
    flaws = rules.debsecan(
        [
            "CVE-2026-0001 openssl (fixed, remotely exploitable, high urgency)",
            "CVE-2026-0002 jq (low urgency)",
            "TEMP-0841856-B18BAF bash",
        ]
    )
    assert [(flaw.name, flaw.package, flaw.fixed) for flaw in flaws] == [
        ("CVE-2026-0001", "openssl", True),
        ("CVE-2026-0002", "jq", False),
        ("TEMP-0841856-B18BAF", "bash", False),
    ]


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (rules.Fixes(None, None, "apt-get: E: no"), "fixes outstanding: not known: apt-get: E: no"),
        (rules.Fixes((), NOON), "no package has a newer version, by package lists of 2026-11-23"),
        (rules.Fixes((), NOON, "no route"), "(no newer ones: no route)"),
        (
            rules.Fixes(rules.policy(POLICY), NOON),
            "newer versions of 2 packages, security fixes of 1: openssl; by",
        ),
        (rules.Flaws(None, "no debsecan"), "known vulnerabilities: not known: no debsecan"),
        (rules.Flaws(()), "0 known vulnerabilities"),
    ],
)
def test_what_is_not_known_is_never_told_as_nothing_wrong(known, says):
    assert says in str(known)
    assert ("not known" in str(known)) == (known.as_dict()["found"] is None)


# With a real apt and an archive in a folder


def publish(archive: Path, suite: str, versions: dict[str, str]) -> None:
    folder = archive / "dists" / suite
    (folder / "main/binary-amd64").mkdir(parents=True, exist_ok=True)
    index = "".join(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: A <a@b.example>\n"
        f"Description: of {name}\nFilename: pool/{name}.deb\nSize: 1\nSHA256: {'0' * 64}\n\n"
        for name, version in versions.items()
    ).encode()
    (folder / "main/binary-amd64/Packages").write_bytes(index)
    digest = hashlib.sha256(index).hexdigest()
    (folder / "Release").write_text(
        f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nComponents: main\n"
        f"Architectures: amd64\nDate: Mon, 23 Nov 2026 12:00:00 UTC\n"
        f"SHA256:\n {digest} {len(index)} main/binary-amd64/Packages\n"
    )


def document(archive: Path, *suites: str, **installed: str):
    lines = [f"deb [trusted=yes] file:{archive} {suite} main\n" for suite in suites]
    found = {
        "distribution": "debian",
        "release": "13",
        "suite": "trixie",
        "architecture": "amd64",
        "packages": [
            [name, version, "amd64", name, version] for name, version in installed.items()
        ],
        "python": [],
        "apt": {
            "/etc/apt/sources.list": "".join(lines),
            "/etc/apt/preferences.d/mysql": "Package: *\nPin: release n=sid\nPin-Priority: 100\n",
        },
    }
    text = sbom.document(found, name="image", version="1", made_at=NOON, properties={})
    return json.loads(text)


def report(tmp_path, made, now=NOON):
    return everything(tmp_path, made, now).fixes


def everything(tmp_path, made, now=NOON):
    scratch = tmp_path / "var"
    return fixes.reports({"ami-1": made}, scratch=scratch, now=now, say=print)["ami-1"]


def found(known):
    assert known.found is not None, known.why
    return {(fix.package, fix.new, fix.security) for fix in known.found}


@needs_apt
def test_apt_judges_an_image_by_the_images_own_sources(tmp_path):
    archive = tmp_path / "archive"
    publish(archive, "trixie", {"openssl": "3.5.1-1", "jq": "1.7.1-6", "git": "1:2.47.3-0"})
    publish(archive, "trixie-security", {"openssl": "3.5.1-1+deb13u1"})
    made = document(
        archive,
        "trixie",
        "trixie-security",
        openssl="3.5.1-1",
        # Older by Debian's rules, and not by the alphabet's.
        jq="1.7.1~rc9-10",
        git="1:2.47.3-0",
        ours="1.0",
    )
    known = report(tmp_path, made)
    assert found(known) == {("openssl", "3.5.1-1+deb13u1", True), ("jq", "1.7.1-6", False)}
    assert known.listed_at == NOON


@needs_apt
def test_a_pinned_release_is_asked_for_what_came_from_it_and_nothing_else(tmp_path):
    archive = tmp_path / "archive"
    publish(archive, "trixie", {"libc6": "2.41-12"})
    publish(archive, "sid", {"libc6": "2.42-1", "mysql-server": "9.7.5-1"})
    installed = {"libc6": "2.41-12", "mysql-server": "9.7.4-1"}
    made = document(archive, "trixie", "sid", **installed)
    assert found(report(tmp_path, made)) == {("mysql-server", "9.7.5-1", False)}


@needs_apt
def test_without_lists_nothing_is_known_and_with_old_ones_their_age_is_told(tmp_path):
    archive = tmp_path / "archive"
    made = document(archive, "trixie", openssl="3.5.1-1")
    never = report(tmp_path, made)
    assert never.found is None
    assert "apt-get: E:" in never.why
    publish(archive, "trixie", {"openssl": "3.5.2-1"})
    assert found(report(tmp_path, made)) == {("openssl", "3.5.2-1", False)}
    shutil.move(archive, tmp_path / "away")
    # Young ones are not fetched again; old ones are judged by, and it is told that they are.
    now = datetime.now(UTC)
    assert report(tmp_path, made, now).why == ""
    stale = report(tmp_path, made, now + timedelta(days=1))
    assert found(stale) == {("openssl", "3.5.2-1", False)}
    assert "apt-get: E:" in stale.why


def test_a_machine_without_apt_and_debsecan_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    made = document(tmp_path / "archive", "trixie", openssl="3.5.1-1")
    known = everything(tmp_path, made)
    assert (known.fixes.found, known.flaws.found) == (None, None)
    assert "is not installed on this machine" in known.fixes.why
    assert known.flaws.why == "debsecan is not installed on this machine"


def test_a_disk_that_takes_nothing_is_a_reason_and_no_failure(tmp_path):
    (tmp_path / "var").write_text("a file where a folder should be")
    known = everything(tmp_path, document(tmp_path / "archive", "trixie", openssl="3.5.1-1"))
    assert "could not write" in str(known.fixes)
    assert "not known" in str(known.flaws)

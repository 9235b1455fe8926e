"""A host's own certificate when its files are damaged: mended or kept, and never made worse."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from test_authority import ISSUER, NOW, ROOT, WANTED, put, rules, shaken, tool

NAME = WANTED.names[1]
_FORK = multiprocessing.get_context("fork")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What a host has that runs since an hour."""
    put(tmp_path)
    assert tool.renew(tmp_path, NOW - timedelta(hours=1)) == 0
    return tmp_path


def is_believed(home: Path, tmp_path: Path) -> bool:
    folder = tmp_path / "client"
    folder.mkdir(exist_ok=True)
    return shaken(folder, (home / "leaf.pem").read_bytes(), NAME) == ""


def foreign() -> bytes:
    """A certificate with its key that has no names but the old-fashioned one."""
    own = rules.root("a", "b", rules.new_key(), NOW)
    return own.pem().encode()


def cut(content: bytes, part: int) -> bytes:
    """Without the key, the certificate, or the issuer's."""
    marks = [b"-----BEGIN PRIVATE", b"-----BEGIN CERT"]
    start, middle = (content.index(mark) for mark in marks)
    last = content.rindex(marks[1])
    pieces = [content[start:middle], content[middle:last], content[last:]]
    return b"".join(piece for number, piece in enumerate(pieces) if number != part)


DAMAGED: dict[str, Any] = {
    "empty": lambda _: b"",
    "junk": lambda _: b"\xff\x00 junk",
    "half": lambda content: content[: len(content) // 2],
    "no key": lambda content: cut(content, 0),
    "no certificate": lambda content: cut(content, 1),
    "no issuer": lambda content: cut(content, 2),
    "key of another": lambda content: key_of(foreign()) + cut(content, 0),
    "foreign": lambda _: foreign(),
}


def key_of(pem: bytes) -> bytes:
    return pem[: pem.index(b"-----BEGIN CERT")]


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_certificate_that_no_server_could_use_is_made_anew(
    home: Path, tmp_path: Path, kind: str
) -> None:
    path = home / "leaf.pem"
    path.write_bytes(DAMAGED[kind](path.read_bytes()))
    assert tool.renew(home, NOW) == 0
    assert is_believed(home, tmp_path)
    before = path.read_bytes()
    assert tool.renew(home, NOW) == 0
    assert path.read_bytes() == before


def unlimited() -> str:
    """An issuer without name constraints."""
    key = rules.new_key()
    name = rules._name("no limits")
    builder = rules._authority(name, ROOT.certificate.subject, key, NOW, days=9, below=0)
    return rules.Authority(key, builder.sign(ROOT.key, hashes.SHA256())).pem()


ISSUERS: dict[str, Any] = {
    "empty": lambda: "",
    "junk": lambda: "junk",
    "no key": ISSUER.public,
    "no certificate": lambda: ISSUER.pem().partition("-----BEGIN CERT")[0],
    "half": lambda: ISSUER.pem()[:-200],
    "half a key": lambda: ISSUER.pem()[60:],
    "key of another": lambda: rules.Authority(rules.new_key(), ISSUER.certificate).pem(),
    "no limits": unlimited,
    "foreign": lambda: rules.root("a", "b", rules.new_key(), NOW).pem(),
}


@pytest.mark.parametrize("kind", ISSUERS)
def test_with_a_damaged_issuer_what_is_served_stays_and_one_line_says_why(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    before = (home / "leaf.pem").read_bytes()
    (home / "issuer.pem").write_text(ISSUERS[kind]())
    capsys.readouterr()
    assert tool.renew(home, NOW + timedelta(hours=113)) == 1
    assert (home / "leaf.pem").read_bytes() == before
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "leaf.pem is as it was" in told[0]
    assert "fab fleet.configure" in told[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"names": [], "addresses": [], "hours": 168, "group": "root"}',
        '{"names": ["a"], "addresses": ["10.0.0.300"], "hours": 168, "group": "root"}',
        '{"names": ["a"], "addresses": [], "hours": "x", "group": "root"}',
        '{"names": ["a"], "addresses": [], "hours": 168, "group": "root", "new": 1}',
        '{"names": [1], "addresses": [], "hours": 168, "group": "root"}',
    ],
)
def test_settings_that_make_no_certificate_are_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    before = (home / "leaf.pem").read_bytes()
    (home / "tls.json").write_text(text)
    capsys.readouterr()
    assert tool.renew(home, NOW) == 1
    assert (home / "leaf.pem").read_bytes() == before
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "tls.json cannot be used" in told[0]


def test_a_clock_that_went_back_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.renew(home, NOW - timedelta(days=400)) == 1
    assert "this host's clock says" in capsys.readouterr().err


def test_a_clock_that_went_forward_and_back_leaves_a_certificate_that_is_valid(
    home: Path, tmp_path: Path
) -> None:
    assert tool.renew(home, NOW + timedelta(days=300)) == 0
    assert tool.renew(home, NOW) == 0
    assert is_believed(home, tmp_path)


def test_a_group_that_is_not_there_and_a_full_disk_are_one_line_and_services_are_told(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may not have taken the certificate that there is."""
    before = (home / "leaf.pem").read_bytes()
    put(home, group="no-such-group", after=[["sh", "-c", f"echo told >> {home}/told"]])
    capsys.readouterr()
    assert tool.renew(home, NOW + timedelta(hours=113)) == 1
    assert "no-such-group" in capsys.readouterr().err

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    put(home, after=[["sh", "-c", f"echo told >> {home}/told"]])
    monkeypatch.setattr(os, "fsync", full)
    assert tool.renew(home, NOW + timedelta(hours=113)) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "No space left" in told[0]
    assert (home / "leaf.pem").read_bytes() == before
    assert (home / "told").read_text() == "told\n" * 2
    assert not list(home.glob(".leaf*"))


def test_permissions_that_somebody_changed_come_back(home: Path) -> None:
    (home / "leaf.pem").chmod(0o666)
    assert tool.renew(home, NOW) == 0
    assert (home / "leaf.pem").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["fsync", "rename", "chmod"])
def test_a_run_that_was_killed_leaves_a_whole_file_and_the_next_one_no_key_beside_it(
    home: Path, tmp_path: Path, step: str
) -> None:
    before = (home / "leaf.pem").read_bytes()

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        setattr(os if step == "fsync" else tool.Path, step, die)
        tool.renew(home, NOW + timedelta(hours=113))

    for _ in range(2):
        child = _FORK.Process(target=run)
        child.start()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        assert (home / "leaf.pem").read_bytes() == before
    assert tool.renew(home, NOW + timedelta(hours=113)) == 0
    assert (home / "leaf.pem").read_bytes() != before
    assert not list(home.glob(".leaf*"))


def test_two_at_once_make_one(home: Path, tmp_path: Path) -> None:
    (home / "leaf.pem").unlink()
    runs = [_FORK.Process(target=tool.renew, args=(home, NOW)) for _ in range(4)]
    for one in runs:
        one.start()
    for one in runs:
        one.join(30)
    assert [one.exitcode for one in runs] == [0] * 4
    assert is_believed(home, tmp_path)

"""The release tool that runs on application hosts, on a folder instead of /."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles/app/files/app_release.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("app_release", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load()


class Systemctl:
    """Stands in for systemd: what it was told, and what it answers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.restarts = 0
        self.pid = 0
        self.refuses: set[str] = set()

    def __call__(self, *words: str, check: bool = True) -> str:
        self.told.append(words)
        if check and words[0] in self.refuses:
            raise tool.NotDoneError(f"systemctl {words[0]}: no")
        if words[-1] == "MainPID":
            return f"{self.pid}\n"
        if words[-1] == "NRestarts":
            return f"{self.restarts}\n"
        if words[0] == "show":
            return "active\n@1000\n"
        return ""


def tarball(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    fake = Systemctl()
    monkeypatch.setattr(tool, "systemctl", fake)
    return fake


@pytest.fixture
def host(tmp_path: Path, systemctl: Systemctl) -> object:
    made = tool.Host(tmp_path)
    made.releases.mkdir(parents=True)
    made.settings_file.parent.mkdir(parents=True)
    made.lock.parent.mkdir(parents=True)
    settings = {"bucket": "b", "keep": 2, "migrate": "", "boot_seconds": 1}
    settings |= {"version_path": "/version", "ready_path": "/readyz"}
    made.settings_file.write_text(json.dumps(settings))
    return made


Stage = Callable[..., dict[str, object]]


@pytest.fixture
def stage(host: object, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Stage bytes as they would come from S3."""

    def do(version: str, content: bytes, sha256: str | None = None) -> dict[str, object]:
        monkeypatch.setattr(tool, "download", lambda _, __, path: path.write_bytes(content))
        digest = hashlib.sha256(content).hexdigest()
        return tool.stage(host, version, sha256 or digest)

    return do


def test_a_staged_release_is_unpacked_recorded_and_not_yet_current(host, stage) -> None:
    assert stage("1", tarball({"VERSION": b"1", "a/b.txt": b"x"})) == {
        "version": "1",
        "already": False,
    }
    assert (host.releases / "1/a/b.txt").read_bytes() == b"x"
    assert list(host.staged()) == ["1"]
    assert host.version() is None


def test_staging_again_changes_nothing(host, stage) -> None:
    content = tarball({"VERSION": b"1"})
    stage("1", content)
    before = (host.releases / "1").stat().st_ctime_ns
    assert stage("1", content)["already"] is True
    assert (host.releases / "1").stat().st_ctime_ns == before


def test_python_sources_are_compiled_while_the_host_still_serves(host, stage) -> None:
    stage("1", tarball({"app.py": b"x = 1\n", "broken.py": b"def\n"}))
    assert list((host.releases / "1/__pycache__").glob("app.*.pyc"))


def test_a_version_with_other_content_is_refused_and_kept(host, stage) -> None:
    stage("1", tarball({"VERSION": b"one"}))
    with pytest.raises(tool.NotDoneError, match="never changes"):
        stage("1", tarball({"VERSION": b"two"}))
    assert (host.releases / "1/VERSION").read_bytes() == b"one"


def test_a_download_with_another_checksum_is_not_unpacked(host, stage) -> None:
    with pytest.raises(tool.NotDoneError, match="not unpacked"):
        stage("1", tarball({"VERSION": b"1"}), sha256="0" * 64)
    assert list(host.releases.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"no tarball", tarball({"../evil": b"x"}), tarball({"a": b"x" * 9})[:40]],
    # A compressed file holds the second it was made in: as a name it would differ by worker.
    ids=["no tarball", "climbs out of its folder", "cut off"],
)
def test_what_cannot_be_unpacked_leaves_nothing_behind(host, stage, content: bytes) -> None:
    with pytest.raises(tool.NotDoneError, match="unpacked"):
        stage("1", content)
    assert list(host.releases.iterdir()) == []
    assert not (host.releases.parent / "evil").exists()


@pytest.mark.parametrize("is_old", [False, True], ids=["this Python", "one without filters"])
def test_a_link_that_leads_out_is_not_followed(host, stage, monkeypatch, is_old: bool) -> None:
    if is_old:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(host.releases.parent)
        tar.addfile(link)
        inside = tarfile.TarInfo("out/evil")
        tar.addfile(inside, io.BytesIO(b""))
    with pytest.raises(tool.NotDoneError, match="unpacked"):
        stage("1", made.getvalue())
    assert list(host.releases.iterdir()) == []
    assert not (host.releases.parent / "evil").exists()


def test_a_half_staged_release_is_not_a_release(host, stage) -> None:
    (host.releases / "1").mkdir()
    (host.releases / "1/VERSION").write_text("half")
    assert host.staged() == {}
    with pytest.raises(tool.NotDoneError, match="is not on this host"):
        tool.switch(host, "1")
    stage("1", tarball({"VERSION": b"whole"}))
    assert (host.releases / "1/VERSION").read_text() == "whole"


def test_switching_stops_first_and_tells_what_ran_before(host, stage, systemctl) -> None:
    for version in ("1", "2"):
        stage(version, tarball({"VERSION": version.encode()}))
    assert tool.switch(host, "1") == {"previous": None, "current": "1"}
    assert tool.switch(host, "2") == {"previous": "1", "current": "2"}
    assert (host.current / "VERSION").read_bytes() == b"2"
    verbs = [words[0] for words in systemctl.told if words[0] != "show"]
    assert verbs == ["stop", "reset-failed", "start"] * 2
    assert tool.retire(host) == {"previous": "2", "current": None}
    assert not host.current.is_symlink()


def test_an_application_that_does_not_stop_keeps_its_release(host, stage, systemctl) -> None:
    for version in ("1", "2"):
        stage(version, tarball({"VERSION": version.encode()}))
    tool.switch(host, "1")
    systemctl.refuses.add("stop")
    with pytest.raises(tool.NotDoneError):
        tool.switch(host, "2")
    assert host.version() == "1"


def test_pruning_keeps_the_current_release_and_the_newest_others(host, stage) -> None:
    for version in ("1", "2", "3", "4"):
        stage(version, tarball({"VERSION": version.encode()}))
    tool.switch(host, "1")
    (host.releases / ".staging-left").mkdir()
    assert tool.prune(host) == {"dropped": [".staging-left", "2"]}
    assert sorted(host.staged()) == ["1", "3", "4"]


def test_settings_that_changed_after_the_start_make_the_host_stale(host) -> None:
    assert tool.status(host)["stale"] is False
    host.environment.write_text("A=1\n")
    assert tool.status(host)["stale"] is True


class Answers(BaseHTTPRequestHandler):
    version = "1"
    ready = 200

    def do_GET(self) -> None:
        body = json.dumps({"version": Answers.version}).encode()
        self.send_response(Answers.ready if self.path == "/readyz" else 200)
        self.end_headers()
        self.wfile.write(body if self.path == "/version" else b"no primary")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def answering(host) -> Iterator[object]:
    Answers.version, Answers.ready = "1", 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host.base_url = f"http://127.0.0.1:{server.server_port}"
    yield host
    server.shutdown()


def test_a_host_is_ready_when_it_names_the_version_and_can_serve(answering) -> None:
    assert tool.wait(answering, "1", 5)["version"] == "1"


def test_another_version_and_not_ready_say_which(answering) -> None:
    with pytest.raises(tool.NotDoneError, match="names version '1'"):
        tool.wait(answering, "2", 0.3)
    Answers.ready = 503
    with pytest.raises(tool.NotDoneError, match="503: no primary"):
        tool.wait(answering, "1", 0.3)


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="no autogroup here")
def test_a_release_that_starts_comes_after_those_that_serve(answering, stage, systemctl) -> None:
    stage("1", tarball({"VERSION": b"1"}))
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        systemctl.pid = process.pid
        weight = Path(f"/proc/{process.pid}/autogroup")
        tool.switch(answering, "1")
        assert weight.read_text().endswith("nice 10\n")
        tool.wait(answering, "1", 5)
        assert weight.read_text().endswith("nice 0\n")
        process.kill()


def test_a_release_that_keeps_ending_is_not_waited_for(answering, systemctl) -> None:
    systemctl.restarts = 3
    with pytest.raises(tool.NotDoneError, match="ended 3 times"):
        tool.wait(answering, "2", 60)


def test_a_release_that_names_another_version_is_not_waited_for(answering) -> None:
    with pytest.raises(tool.NotDoneError, match="names version '1', not '2'"):
        tool.wait(answering, "2", 60)


def test_a_version_in_plain_text_is_understood() -> None:
    assert tool.named_version(b"2.1\n") == "2.1"
    assert tool.named_version(b'{"version": 2}') == "2"


def test_two_at_a_time_are_refused_and_errors_are_one_line(host, stage, tmp_path, capsys) -> None:
    assert tool.main(["switch", "9"], tmp_path) == 1
    assert "release 9 is not on this host; it has none" in capsys.readouterr().err
    import fcntl

    with host.lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tool.main(["prune"], tmp_path) == 1
        assert "another app-release is at work" in capsys.readouterr().err


def test_a_host_that_was_never_configured_says_so(tmp_path, systemctl, capsys) -> None:
    (tmp_path / "run/lock").mkdir(parents=True)
    assert tool.main(["prune"], tmp_path) == 1
    assert "configure the host first" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["../1", "", "a b", "-1"])
def test_a_version_is_one_plain_word(version: str) -> None:
    with pytest.raises(SystemExit):
        tool.main(["stage", f"--sha256={'0' * 64}", "--", version])

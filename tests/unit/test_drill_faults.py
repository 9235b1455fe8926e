"""When a fault strikes, that it is undone, and what the drill refuses."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flotilla.drill import Options, spoilt
from flotilla.drill.faults import KILL_AT, STRIKES, Site, Strike, demand, missed, strike_of, struck
from flotilla.drill.follow import Follower
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.rules.drill import FAULTS

# A deploy of two hosts as its journal tells it.
LINES: list[dict[str, Any]] = [
    {"event": "begin"},
    {"event": "stage", "hosts": ["app-1", "app-2"]},
    {"event": "batch", "number": 1, "hosts": ["app-1"]},
    *(
        {"event": "step", "host": "app-1", "step": step, "error": ""}
        for step in (
            "drain",
            "switch to b",
            "ready on the host",
            "checked by every load balancer",
            "return",
        )
    ),
    {"event": "end"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deploys").mkdir()
    return tmp_path


def site(folder: Path) -> Site:
    settings: Any = SimpleNamespace(scratch=folder)
    return Site(settings, runner=None, balancers=["lb-1"], hosts=["app-1", "app-2"])  # type: ignore[arg-type]


def write(folder: Path, lines: list[dict[str, Any]], name: str = "new") -> None:
    with (folder / "deploys" / f"{name}.jsonl").open("a") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def wait_for(what: Any) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_journal_that_was_there_before_is_not_followed(folder: Path) -> None:
    write(folder, LINES, "old")
    heard: list[dict[str, Any]] = []
    with Follower(folder / "deploys", heard.append):
        write(folder, LINES[:3])
        wait_for(lambda: len(heard) == 3)
        write(folder, LINES[3:])
    assert heard == LINES


def test_a_line_is_heard_when_it_is_whole(folder: Path) -> None:
    heard: list[dict[str, Any]] = []
    path = folder / "deploys" / "new.jsonl"
    with Follower(folder / "deploys", heard.append):
        path.write_text('{"event": "be')
        time.sleep(0.15)
        assert heard == []
        with path.open("a") as file:
            file.write('gin"}\n')
    assert heard == [{"event": "begin"}]


def test_what_goes_wrong_while_striking_is_told_at_the_end(folder: Path) -> None:
    def fails(_: Any) -> None:
        raise FlotillaError("the lab refused")

    with pytest.raises(FlotillaError, match="the lab refused"), Follower(folder / "deploys", fails):
        write(folder, LINES)


def test_a_fault_strikes_once_at_its_moment_and_is_undone(folder: Path) -> None:
    where, done = site(folder), []

    def act(found: Site, line: Any) -> None:
        found.undoing.append(lambda: done.append("undone"))
        done.append(line["step"])

    with struck(where, Strike(lambda line: line["event"] == "step", act)) as moments:
        write(folder, LINES)
        wait_for(lambda: moments)
        assert done == ["drain"]
    assert done == ["drain", "undone"]
    assert moments == ["step app-1 drain"]


def test_a_fault_is_undone_when_the_deploy_breaks_and_when_striking_itself_did(
    folder: Path,
) -> None:
    where, done = site(folder), []

    def act(found: Site, _: Any) -> None:
        found.undoing.append(lambda: done.append("undone"))
        raise FlotillaError("half struck")

    def breaks() -> None:
        with struck(where, Strike(lambda _: True, act)):
            write(folder, LINES)
            wait_for(lambda: where.undoing)
            raise KeyError("the deploy")

    with pytest.raises(KeyError):
        breaks()
    assert done == ["undone"]


def test_one_undoing_that_fails_does_not_keep_the_others_from_being_done(folder: Path) -> None:
    where, done = site(folder), []

    def fails() -> None:
        raise FlotillaError("lb-1 does not answer")

    def act(found: Site, _: Any) -> None:
        found.undoing += [lambda: done.append("first"), fails, lambda: done.append("last")]

    def ends() -> None:
        with struck(where, Strike(lambda _: True, act)):
            write(folder, LINES)
            wait_for(lambda: where.undoing)

    with pytest.raises(FlotillaError, match="lb-1"):
        ends()
    assert done == ["last", "first"]


def test_a_run_whose_fault_never_struck_says_so(folder: Path) -> None:
    strike = Strike(lambda line: line["event"] == "migrate", lambda *_: None)
    with struck(site(folder), strike) as moments:
        write(folder, LINES)
    assert moments == []
    refused = missed("refused", "deploy is taken")
    assert "refused before the fault struck: deploy is taken" in str(refused)
    assert (refused.exit_code, missed("failed", "").exit_code) == (3, 1)


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_has_a_moment_in_a_deploy_or_is_a_bad_release(kind: str) -> None:
    strike = strike_of(kind, 0)
    if strike is None:
        assert kind in spoilt.CHANGED
    else:
        assert any(strike.moment(line) for line in LINES)


def test_an_operator_is_killed_at_another_step_in_each_run() -> None:
    hit = []
    for number in range(len(KILL_AT)):
        strike = strike_of("operator-kill", number)
        assert strike
        hit.append(next(n for n, line in enumerate(LINES) if strike.moment(line)))
    assert hit == sorted(set(hit)), "each later than the one before"
    assert strike_of("operator-kill", 0)
    assert set(STRIKES) | set(spoilt.CHANGED) == set(FAULTS)


def test_a_step_that_failed_is_not_the_moment_of_a_fault() -> None:
    failed = {"event": "step", "host": "app-1", "step": "drain", "error": "busy"}
    assert not STRIKES["lb-reload"].moment(failed)


def test_a_fault_that_needs_the_lab_is_refused_where_there_is_none() -> None:
    with pytest.raises(Refused, match="production"):
        demand("api-down", None, "production")
    demand("lb-reload", None, "production")


@pytest.mark.parametrize(
    "wrong",
    [{"fault": "earthquake"}, {"runs": 0}, {"rate": 0}, {"versions": ("a",)}, {"calm_seconds": 0}],
)
def test_what_cannot_be_rehearsed_is_a_bad_option(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadOption):
        Options(**wrong).demand()
    Options().demand()


def artifact(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            inside = path.with_name("file")
            inside.write_text(content)
            tar.add(inside, name)
    return path


@pytest.mark.parametrize("kind", spoilt.CHANGED)
def test_a_spoilt_release_differs_in_what_is_meant_and_nothing_else(
    kind: str, tmp_path: Path
) -> None:
    files = {"VERSION": "a\n", "guestbook/wsgi.py": "app = 1\n", "static/style.css": "x"}
    good = artifact(tmp_path / "good.tar.gz", files)
    spoilt.changed_copy(good, tmp_path / "bad.tar.gz", spoilt.CHANGED[kind])
    with tarfile.open(tmp_path / "bad.tar.gz") as tar:
        found = {m.name: tar.extractfile(m).read().decode() for m in tar}  # type: ignore[union-attr]
    assert found == files | dict(spoilt.CHANGED[kind])
    for name, text in found.items():
        if name.endswith(".py"):
            compile(text, name, "exec")


def test_an_artifact_that_is_another_application_is_not_spoilt(tmp_path: Path) -> None:
    good = artifact(tmp_path / "good.tar.gz", {"main.go": "package main"})
    with pytest.raises(Refused, match="--bad"):
        spoilt.changed_copy(good, tmp_path / "bad.tar.gz", spoilt.CHANGED["never-healthy"])
    assert not (tmp_path / "bad.tar.gz").exists()

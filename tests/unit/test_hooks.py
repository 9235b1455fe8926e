"""Commands of the operator's own around a deploy: what they are told, and what they may forbid."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from fleets import LAB

from flotilla import config
from flotilla.deploy.hooks import Hooks, run
from flotilla.errors import HostFailed, Refused

TELL = (
    "import json, os, sys; "
    "told = {k: v for k, v in os.environ.items() if k.startswith('FLOTILLA_')}; "
    "open('told.jsonl', 'a').write(json.dumps(told) + '\\n')"
)
FAIL = [sys.executable, "-c", "print('checking'); raise SystemExit('the ticket is not approved')"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FLOTILLA_")]:
        monkeypatch.delenv(name)


def hooks(root: Path, **commands: list[list[str]]) -> Hooks:
    settings = config.parse(LAB.read_bytes(), env="lab", shown="fleet.yml", root=root)
    section = settings.deploy.hooks.model_copy(update=commands)
    deploy = settings.deploy.model_copy(update={"hooks": section})
    return Hooks(settings.model_copy(update={"deploy": deploy}).placed(root, ""), "id-7", "v2")


def told(root: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (root / "told.jsonl").read_text().splitlines()]


def test_a_hook_is_told_what_is_deployed_and_how_it_ended(tmp_path):
    tell = [sys.executable, "-c", TELL]
    made = hooks(tmp_path, before=[tell], after=[tell], before_host=[tell], after_host=[tell])
    made.before()
    with made.around("app-1", "v2"):
        pass
    made.after("done")
    common = {"FLOTILLA_ENV": "lab", "FLOTILLA_DEPLOY_ID": "id-7", "FLOTILLA_VERSION": "v2"}
    said = [
        ("before", "", ""),
        ("before_host", "app-1", ""),
        ("after_host", "app-1", "done"),
        ("after", "", "done"),
    ]
    assert told(tmp_path) == [
        common | {"FLOTILLA_PHASE": phase, "FLOTILLA_HOST": host, "FLOTILLA_OUTCOME": outcome}
        for phase, host, outcome in said
    ]
    assert made.notes == []


def test_a_hook_before_the_deploy_that_fails_refuses_it_with_what_it_said(tmp_path):
    with pytest.raises(Refused) as refused:
        hooks(tmp_path, before=[FAIL]).before()
    assert "failed with exit code 1: the ticket is not approved" in refused.value.what
    assert refused.value.untouched == "No host was touched"


def test_the_hooks_behind_one_that_failed_do_not_run(tmp_path):
    with pytest.raises(Refused):
        hooks(tmp_path, before=[FAIL, [sys.executable, "-c", TELL]]).before()
    assert not (tmp_path / "told.jsonl").exists()


def test_a_hook_before_a_host_that_fails_keeps_that_host_from_being_touched(tmp_path):
    touched = []
    made = hooks(tmp_path, before_host=[FAIL])
    with pytest.raises(HostFailed, match=r"app-2: the before_host hook .*not approved"):  # noqa: SIM117
        with made.around("app-2", "v2"):
            touched.append("app-2")
    assert touched == []


def test_on_the_way_back_no_hook_can_forbid_anything(tmp_path):
    touched = []
    made = hooks(tmp_path, before_host=[FAIL], after_host=[FAIL])
    with made.around("app-2", "v1", back=True):
        touched.append("app-2")
    assert touched == ["app-2"]
    assert [note.partition(" hook")[0] for note in made.notes] == [
        "app-2: the before_host",
        "app-2: the after_host",
    ]


def test_a_hook_after_something_is_noted_when_it_fails_and_changes_nothing(tmp_path):
    made = hooks(tmp_path, after=[FAIL, [sys.executable, "-c", TELL]])
    made.after("rolled back")
    assert len(made.notes) == 1
    assert told(tmp_path)[0]["FLOTILLA_OUTCOME"] == "rolled back", "the next one runs all the same"


def test_a_host_that_failed_is_told_to_its_hook_and_the_error_stays(tmp_path):
    made = hooks(tmp_path, after_host=[[sys.executable, "-c", TELL]])
    with pytest.raises(HostFailed, match="never healthy"), made.around("app-1", "v2"):
        raise HostFailed("app-1: never healthy")
    assert told(tmp_path)[0]["FLOTILLA_OUTCOME"] == "failed"


def test_arguments_are_no_shell(tmp_path):
    out = tmp_path / "out"
    words = ["$HOME; touch pwned", "a b", "*"]
    code = "import pathlib, sys; pathlib.Path('out').write_text(repr(sys.argv[1:]))"
    assert run([sys.executable, "-c", code, *words], {}, tmp_path, 20) is None
    assert out.read_text() == repr(words)
    assert not (tmp_path / "pwned").exists()


def test_a_hook_that_hangs_is_ended_with_everything_it_started(tmp_path):
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path('child').write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    said = run([sys.executable, "-c", code], dict(os.environ), tmp_path, 1.5)
    assert said == "did not end within 1.5 s"
    assert time.monotonic() - began < 15
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while _lives(child):
        assert time.monotonic() < deadline, "what the hook started lives on"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_command_that_is_not_there_is_said(tmp_path):
    assert run(["no-such-command"], {}, tmp_path, 5) == ("cannot be run: No such file or directory")


def test_a_hook_that_talks_without_end_fills_no_memory(tmp_path):
    code = "import sys; sys.stdout.write('x' * (8 << 20) + '\\nlast'); sys.exit(3)"
    assert run([sys.executable, "-c", code], {}, tmp_path, 20) == "failed with exit code 3: last"

"""What roles ask a host before they change it: missing packages, files that differ."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location(
    "flotilla_differing", ROOT / "playbooks/action_plugins/flotilla_differing.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
differing = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(differing)
ITEMS = {
    "directories": ["{out}"],
    "templates": [{"src": "a.j2", "dest": "{out}/a"}, {"src": "empty.j2", "dest": "{out}/empty"}],
    "copies": [{"src": "c", "dest": "{out}/c", "mode": "0755"}],
}
_PLAY: list[dict[str, Any]] = [
    {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"word": "wörld"},
        "roles": ["tried"],
    }
]


@pytest.fixture
def tried(tmp_path: Path):
    """Runs one task of a role that has those files; its result."""
    role = tmp_path / "roles" / "tried"
    for folder in ("tasks", "templates", "files"):
        (role / folder).mkdir(parents=True)
    (role / "templates/a.j2").write_text("# {{ ansible_managed }}\nhello {{ word }}\n\n")
    (role / "templates/empty.j2").write_text("")
    (role / "files/c").write_text("#!/bin/sh\n")
    (tmp_path / "play.yml").write_text(json.dumps(_PLAY))
    answers = tmp_path / "told"

    def run(action: str, **arguments: Any) -> dict[str, Any]:
        tasks = [
            {action: arguments, "register": "told"},
            {
                "ansible.builtin.copy": {
                    "content": "{{ told | to_json }}",
                    "dest": f"{tmp_path}/told",
                }
            },
        ]
        (role / "tasks/main.yml").write_text(json.dumps(tasks))
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "play.yml"],
            cwd=tmp_path,
            env=os.environ
            | {
                "ANSIBLE_ACTION_PLUGINS": str(ROOT / "playbooks/action_plugins"),
                "ANSIBLE_ROLES_PATH": str(tmp_path / "roles"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(answers.read_text())
        return answer

    return run


def items(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(ITEMS).replace("{out}", str(out)))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="files are to be root's")
def test_what_differs_is_named_and_nothing_else(tried, tmp_path: Path):
    out = tmp_path / "out"
    wanted = items(out)
    told = tried("flotilla_differing", **wanted)
    assert {name: told[name] for name in wanted} == wanted
    assert not told["changed"]
    assert not out.exists()

    out.mkdir(mode=0o755)
    for name, text, mode in (
        ("a", "# Ansible managed\nhello wörld\n\n", 0o644),
        ("empty", "", 0o644),
        ("c", "#!/bin/sh\n", 0o755),
    ):
        (out / name).write_text(text)
        (out / name).chmod(mode)
    told = tried("flotilla_differing", **wanted)
    assert not any(told[name] for name in wanted)

    (out / "a").write_text("# Ansible managed\nhello world\n\n")
    (out / "empty").chmod(0o600)
    os.chown(out / "c", 65534, 0)
    out.chmod(0o700)
    told = tried("flotilla_differing", **wanted)
    assert {name: told[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("states", "unit", "fine"),
    [
        (("active", "enabled"), {"enabled": True, "state": "started"}, True),
        (("active", "disabled"), {"enabled": True, "state": "started"}, False),
        (("inactive", "enabled"), {"enabled": True, "state": "started"}, False),
        (("activating", "enabled"), {"state": "started"}, True),
        (("failed", "enabled"), {"state": "started"}, False),
        (("inactive", "masked"), {"masked": True}, True),
        (("inactive", "masked"), {"enabled": True}, False),
        (("inactive", "disabled"), {"masked": True}, False),
        (("inactive", "disabled"), {"enabled": False, "masked": False}, True),
        ((), {"enabled": True}, False),
        ((), {"state": "started"}, False),
        ((), {"masked": True}, False),
    ],
)
def test_a_unit_is_left_alone_only_if_systemd_has_it_so(states, unit, fine) -> None:
    assert differing.as_it_should({"name": "a.timer", **unit}, states) is fine


def test_what_systemd_says_is_kept_apart_from_files() -> None:
    there = differing.found(
        ["directory\t755\troot:root\t/a b", "unit\ta.timer\tenabled\tactive", "unit\tb.service\t"]
    )
    assert there == {
        "/a b": ("directory", "755", "root:root"),
        "unit\ta.timer": ("enabled", "active"),
        "unit\tb.service": ("",),
    }


def test_what_is_missing_is_named_and_so_is_what_should_not_be_there(tried, tmp_path: Path) -> None:
    (tmp_path / "here").touch(mode=0o600)
    paths = [str(tmp_path / "here"), str(tmp_path / "gone")]
    told = tried(
        "flotilla_differing",
        present=paths,
        absent=paths,
        packages=["coreutils", "no-such-package-here"],
        units=[{"name": "no-such-unit-here.service", "enabled": True}],
    )
    assert told["any"]
    assert told["present"] == paths[1:]
    assert told["absent"] == paths[:1]
    assert told["packages"] == ["no-such-package-here"]
    assert [unit["name"] for unit in told["units"]] == ["no-such-unit-here.service"]
    assert not tried("flotilla_differing", present=paths[:1], packages=["coreutils"])["any"]


def test_what_is_staged_has_to_be_in_its_place(tried, tmp_path: Path) -> None:
    place, staged = tmp_path / "in place", tmp_path / "staged"
    for folder in (place, staged / str(place).lstrip("/")):
        folder.mkdir(parents=True)
        (folder / "a.conf").write_text("a\n")
    assert not tried("flotilla_differing", staged=[str(staged)])["any"]
    (place / "a.conf").write_text("b\n")
    (staged / str(place).lstrip("/") / "new.conf").touch()
    told = tried("flotilla_differing", staged=[str(staged)])["staged"]
    assert sorted(told) == [f".{place}/a.conf", f".{place}/new.conf"]
    assert not tried("flotilla_differing", staged=[str(tmp_path / "nothing staged yet")])["any"]


@pytest.mark.skipif(os.geteuid() != 0, reason="files are to be root's")
def test_a_block_is_as_blockinfile_leaves_it(tried, tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("before\n")
    block = [{"src": "a.j2", "dest": str(file)}]
    assert tried("flotilla_differing", blocks=block)["blocks"] == block
    text = "{{ lookup('ansible.builtin.template', 'a.j2') }}"
    tried("ansible.builtin.blockinfile", path=str(file), block=text)
    assert not tried("flotilla_differing", blocks=block)["any"]
    file.write_text(file.read_text().replace("hello", "good-bye"))
    assert tried("flotilla_differing", blocks=block)["blocks"] == block


def test_packages_that_are_there_are_not_asked_of_apt(tried):
    told = tried("flotilla_packages", name=["bash", "coreutils"], state="present")
    assert told == {"changed": False, "failed": False}


def test_a_package_that_is_missing_is_left_to_apt(tried):
    with pytest.raises(AssertionError, match="No package matching 'no-such-package-here'"):
        tried("flotilla_packages", name=["bash", "no-such-package-here"], state="present")


def test_no_other_state_is_taken_for_present(tried):
    with pytest.raises(AssertionError, match="state present, or use apt"):
        tried("flotilla_packages", name="no-such-package-here", state="latest")

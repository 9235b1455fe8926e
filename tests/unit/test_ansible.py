"""Running playbooks: the command, the environment, and what its ending means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flotilla import ansible, config, environment
from flotilla.ansible import Counts, Playbook, Run
from flotilla.errors import BadOption, FlotillaError, HostFailed, Unreachable
from flotilla.settings import Settings

ROOT = environment.root()

HOSTS = """\
all:
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  hosts:
    a: {ansible_connection: local}
    b: {ansible_connection: local}
    gone: {ansible_host: 127.0.0.1, ansible_port: 9, ansible_user: nobody}
"""


@pytest.fixture
def settings() -> Settings:
    return config.load("lab")


@pytest.fixture
def repo(tmp_path: Path) -> Settings:
    """A repository with two hosts that need no SSH to be reached, and one that nobody reaches."""
    (tmp_path / "playbooks").mkdir()
    inventory = tmp_path / "inventory" / "lab"
    inventory.mkdir(parents=True)
    (inventory / "hosts.yml").write_text(HOSTS)
    shutil.copy(ROOT / "ansible.cfg", tmp_path / "ansible.cfg")
    return config.load("lab").placed(tmp_path, "digest")


def played(settings: Settings, hosts: str, task: str) -> tuple[Run, str]:
    play = f"- hosts: {hosts}\n  gather_facts: false\n  tasks:\n    - {task}\n"
    (settings.root / "playbooks" / "play.yml").write_text(play)
    said: list[str] = []
    ended = ansible.run(settings, Playbook("play"), say=said.append)
    return ended, "\n".join(said)


def test_the_command_names_environment_playbook_and_choices(settings):
    playbook = Playbook("site", limit="app", tags=["app", "nginx"], check=True, variables={"x": 1})
    assert ansible.arguments(settings, playbook) == [
        "ansible-playbook", "-i", "inventory/lab", "playbooks/site.yml", "--limit", "app",
        "--tags", "app,nginx", "--check", "--diff", "--extra-vars", '{"x": 1}',
    ]  # fmt: skip


def test_mitogen_is_used_where_it_is_and_stock_ansible_elsewhere(settings):
    with_it = ansible.variables(settings, {}, mitogen=Path("/m"), colour=False)
    without = ansible.variables(settings, {}, mitogen=None, colour=False)
    assert with_it["ANSIBLE_STRATEGY"] == "mitogen_linear"
    assert with_it["ANSIBLE_STRATEGY_PLUGINS"] == "/m"
    assert "ANSIBLE_STRATEGY" not in without
    assert without["FLOTILLA_ENV"] == "lab"
    assert without["AWS_PROFILE"] == "lab"


@pytest.mark.parametrize(
    ("base", "wanted"),
    [({}, "C.UTF-8"), ({"LANG": "C"}, "C.UTF-8"), ({"LANG": "de_DE.UTF-8"}, None)],
)
def test_ansible_always_starts_in_a_utf_8_locale(settings, base, wanted):
    variables = ansible.variables(settings, base, mitogen=None, colour=False)
    assert variables.get("LC_ALL") == wanted


@pytest.mark.parametrize(
    ("source", "version", "known"),
    [
        ("ANSIBLE_VERSION_MIN = (2, 10)\n", "2.19.14", True),
        ("ANSIBLE_VERSION_MIN = (2, 10)\nANSIBLE_VERSION_MAX = (2, 18)\n", "2.19.0", False),
        ("ANSIBLE_VERSION_MIN = (2, 10)\nANSIBLE_VERSION_MAX = (2, 19)\n", "2.19.14", True),
        ("ANSIBLE_VERSION_MIN = (2, 20)\n", "2.19.14", False),
        ("", "2.19.14", False),
    ],
)
def test_a_mitogen_that_does_not_know_this_ansible_is_left_out(source, version, known):
    assert ansible.fits(source, version) is known


def test_the_operator_can_turn_mitogen_off():
    assert ansible.mitogen_plugins({"FLOTILLA_MITOGEN": "off"}) is None


def test_the_recap_is_read_through_colours():
    line = (
        "\x1b[0;32mmysql-1\x1b[0m    : \x1b[0;32mok=12  \x1b[0m changed=3    unreachable=0    "
        "failed=1    skipped=4    rescued=0    ignored=0   "
    )
    assert ansible.counted(line) == {"mysql-1": Counts(12, 3, 0, 1)}
    assert ansible.counted("TASK [ok=1 changed=2] ****") == {}


def ended(code: int, **hosts: Counts) -> Run:
    return Run("site", code, hosts, 1.0)


GOOD, FAILED, SILENT = Counts(3, 1, 0, 0), Counts(3, 0, 0, 1), Counts(0, 0, 1, 0)


@pytest.mark.parametrize(
    ("run", "kind", "said"),
    [
        (ended(2, a=GOOD, b=FAILED), HostFailed, "playbook site failed on b"),
        (ended(4, a=GOOD, b=SILENT), Unreachable, "playbook site: no answer from b"),
        (ended(4, a=FAILED, b=SILENT), HostFailed, "failed on a; b did not answer"),
        (ended(4), FlotillaError, "exited 4 before any host was tried"),
        (ended(0, a=GOOD, b=SILENT), Unreachable, "no answer from b"),
        (ended(250), FlotillaError, "exited 250"),
        (ended(99, a=GOOD), KeyboardInterrupt, ""),
    ],
)
def test_an_ending_is_told_by_the_recap_not_by_the_exit_code_alone(run, kind, said):
    error = ansible.failure(run, env="lab")
    assert type(error) is kind
    assert said in str(error)


def test_a_good_ending_raises_nothing_and_counts_changes():
    run = ended(0, a=GOOD, b=GOOD)
    assert ansible.failure(run, env="lab") is None
    assert run.changed == 2


def test_a_real_playbook_runs_on_every_host(repo):
    run, said = played(repo, "a:b", "ansible.builtin.command: echo hello")
    assert ansible.failure(run, env="lab") is None, said
    assert run.recap == {"a": Counts(1, 1, 0, 0), "b": Counts(1, 1, 0, 0)}
    assert "TASK" in said


def test_a_real_failure_names_its_host(repo):
    run, _ = played(repo, "a:b", "ansible.builtin.command: test {{ inventory_hostname }} = a")
    error = ansible.failure(run, env="lab")
    assert isinstance(error, HostFailed)
    assert "playbook play failed on b." in str(error)


def test_a_real_unreachable_host_is_told_from_a_playbook_that_does_not_parse(repo):
    silent, _ = played(repo, "gone", "ansible.builtin.ping:")
    broken, _ = played(repo, "a", "ansible.builtin.ping: {{{")
    assert isinstance(ansible.failure(silent, env="lab"), Unreachable)
    error = ansible.failure(broken, env="lab")
    assert type(error) is FlotillaError
    assert "before any host was tried" in str(error)


def test_an_unknown_playbook_lists_those_that_exist(repo):
    (repo.root / "playbooks" / "site.yml").touch()
    with pytest.raises(BadOption, match="no playbook 'sight'; playbooks/ has: site"):
        ansible.run(repo, Playbook("sight"), say=lambda _: None)

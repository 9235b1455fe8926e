"""The role's own tasks on a host over SSH, and its agent in the host's own Python."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sshd.machines import REPO, Machine, configure

from flotilla.agent.bundle import bundle
from flotilla.hosts import certificates
from flotilla.rules import access as rules

TOOL = "/usr/local/sbin/flotilla-sshd"
FILE = "/etc/ssh/sshd_config.d/70-trial.conf"
STAGED = "/var/lib/flotilla/sshd/staged"

Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def play(host: Machine, tmp_path: Path) -> Play:
    """Runs tasks/sshd.yml of role base on ``host`` as fleet.configure would."""
    configure(host, "app")
    host.write(TOOL, (REPO / "roles/base/files/sshd_change.py").read_bytes(), 0o755)
    key, config = tmp_path / "key", tmp_path / "a folder with blanks"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    host.write("/home/admin/.ssh/authorized_keys", Path(f"{key}.pub").read_text(), 0o600)
    host.run("chown", "-R", "admin:", "/home/admin")
    host.write("/etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD:ALL\n", 0o440)
    host.start()
    public = host.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text()
    known = tmp_path / "known_hosts"
    known.write_text(f"{host.address} {public}")
    # As the fleet's own: connections are shared, and a shared one is no proof.
    config.write_text(
        f"Host *\n  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n"
        f"  ControlMaster auto\n  ControlPersist 60s\n  ControlPath {tmp_path}/%C\n"
    )
    inventory = tmp_path / "inventory.yml"
    variables = {
        "ansible_host": host.address,
        "ansible_user": "admin",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": f"-F {shlex.quote(str(config))}",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    inventory.write_text(yaml.safe_dump({"all": {"hosts": {"app-1": variables}}}))
    playbook = tmp_path / "play.yml"
    tasks = [{"ansible.builtin.include_role": {"name": "base", "tasks_from": "sshd"}}]
    playbook.write_text(
        yaml.safe_dump([{"hosts": "all", "become": True, "gather_facts": False, "tasks": tasks}])
    )

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        environment = [f"ANSIBLE_CONFIG={REPO}/ansible.cfg", f"ANSIBLE_HOME={tmp_path}/ansible"]
        environment += [f"ANSIBLE_ROLES_PATH={REPO}/roles"]
        words = ["ansible-playbook", "-i", str(inventory), str(playbook), *options]
        return host.here("env", *environment, *words, seconds=240)

    return run


def test_settings_that_a_login_proves_stay_and_a_second_run_changes_nothing(host, play) -> None:
    host.write(f"{STAGED}{FILE}", "MaxAuthTries 4\n")
    dry = play("--check")
    assert "changed=1" in dry.stdout, dry.stdout
    assert not host.path(FILE).exists()
    done = play()
    assert done.returncode == 0, done.stdout
    assert host.path(FILE).exists()
    assert not host.path("/var/lib/flotilla/sshd/pending.json").exists()
    assert "changed=0" in play().stdout


def test_settings_that_keep_everybody_out_are_taken_back_and_named(host, play) -> None:
    host.write(f"{STAGED}{FILE}", "DenyUsers admin\n")
    done = play()
    assert done.returncode == 2, done.stdout
    assert "nobody could log in with the new SSH settings" in done.stdout
    assert not host.path(FILE).exists()
    host.run("rm", f"{STAGED}{FILE}")
    assert play().returncode == 0, "the host is reached as before"


def test_the_agent_runs_from_its_zip_in_the_hosts_own_python(host: Machine) -> None:
    host.write("/opt/flotilla/access.zip", bundle("flotilla.agent.access"))
    run = ["env", "PYTHONPATH=/opt/flotilla/access.zip", "python3", "-m", "flotilla.agent.access"]
    assert json.loads(host.run(*run, "show").stdout) == {}
    public = certificates.public_of(certificates.new_ca(), "people")
    body = rules.trust(public, certificates.revocations(public, [7]), 1, "admin").decode()
    told = json.loads(host.run(*run, "apply", "--tier", "app", stdin=body).stdout)
    assert (told["generation"], told["changed"]) == (1, True)
    assert json.loads(host.run(*run, "show").stdout)["generation"] == 1
    older = rules.trust(public, certificates.revocations(public, []), 0, "admin").decode()
    refused = host.run(*run, "apply", "--tier", "app", stdin=older, check=False)
    assert (refused.returncode, "generation 0" in refused.stderr) == (3, True)
    assert host.path("/etc/ssh/flotilla/user_ca.pub").read_text() == f"{public}\n"

"""What sshd offers, as ssh-audit judges it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mysqld.binaries import NoImageError
from sshd.machines import Machine, configure, machines, ssh_audit

POLICY = "Hardened Debian 13 (version 1)"


@pytest.fixture
def bastion(tmp_path: Path):
    try:
        with machines(tmp_path, [("bastion-1", "127.0.1.1")]) as made:
            configure(made[0], "bastion")
            made[0].start()
            yield made[0]
    except NoImageError as error:
        pytest.skip(str(error))


def test_a_bastion_has_no_failure_and_no_warning(bastion: Machine) -> None:
    done = ssh_audit(bastion)
    assert done.returncode == 0, done.stdout
    assert "[fail]" not in done.stdout
    assert "[warn]" not in done.stdout


def test_a_bastion_passes_the_policy_for_debian(bastion: Machine) -> None:
    done = ssh_audit(bastion, "--policy", POLICY)
    assert done.returncode == 0, done.stdout


def test_other_hosts_have_no_failure_and_warn_of_curve25519_alone(host: Machine) -> None:
    configure(host, "app")
    host.start()
    found = ssh_audit(host).stdout
    assert "[fail]" not in found
    assert "mlkem768x25519-sha256" in found
    warned = [line for line in found.splitlines() if "[warn]" in line]
    assert warned
    assert all("curve25519" in line for line in warned), warned


def test_an_image_without_our_settings_would_fail(host: Machine) -> None:
    host.run("rm", "/etc/ssh/sshd_config.d/60-flotilla.conf")
    host.run("ssh-keygen", "-A")
    host.start()
    assert "[fail]" in ssh_audit(host).stdout

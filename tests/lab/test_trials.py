"""What nobody vouches for does not outlive a reboot: sshd settings and rules of the firewall that
no login has proved, the CA of certificates that may have been revoked since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from guests import Guest, client, needs_lab, running, until
from typed import fab

from flotilla import inventory
from flotilla.errors import FlotillaError
from flotilla.hosts.ssh import Runner, prepare
from flotilla.settings import Settings

pytestmark = [needs_lab, pytest.mark.drill]

SETTINGS = "/etc/ssh/sshd_config.d/10-locked.conf"
STAGED = f"/var/lib/flotilla/sshd/staged{SETTINGS}"
RULES = "/etc/flotilla/firewall.nft"
CA = "/etc/ssh/flotilla/user_ca.pub"
AGENT = "flotilla-access.service"
FIREWALL = "/usr/local/lib/flotilla/firewall.py"
# No timer takes anything back before that: it has to be the boot.
TRIAL_SECONDS = 1200
BOOT_SECONDS = 60


@pytest.fixture
def name(names: dict[str, list[str]]) -> Iterator[str]:
    """A host whose way back is a reboot; the fleet is well at the end."""
    yield names["app"][0]
    until(lambda: fab("fleet.status")["ok"], 60, "all is well")


@pytest.fixture
def guest(standing_fleet: Settings, name: str) -> Guest:
    """The same host, by another way than SSH."""
    found = running(inventory.load(standing_fleet, refresh=True).host(name).instance_id)
    assert found is not None
    return found


@pytest.fixture
def logs_in(standing_fleet: Settings, name: str) -> Callable[[], bool]:
    """Whether the operator gets in, by a connection of its own."""
    snapshot = inventory.load(standing_fleet, refresh=True)
    prepare(standing_fleet, snapshot)

    def tried() -> bool:
        try:
            with Runner(standing_fleet, snapshot, connect_seconds=5) as runner:
                return runner.run(name, "true").ok
        except FlotillaError:
            return False

    return tried


def booted(guest: Guest) -> Guest:
    """The host after a reboot that EC2 was asked for."""
    client("ec2").reboot_instances(InstanceIds=[guest.id])

    def again() -> Guest | None:
        found = running(guest.id)
        return found if found and found.pid != guest.pid else None

    found: Guest = until(again, BOOT_SECONDS, "the host boots again")
    return found


def test_settings_that_shut_everybody_out_are_gone_after_a_reboot(
    guest: Guest, logs_in: Callable[[], bool]
) -> None:
    assert logs_in()
    try:
        guest.says("install", "-D", "-m", "644", "/dev/null", STAGED)
        guest.says("sh", "-c", f"echo 'AllowUsers nobody' >{STAGED}")
        guest.says("flotilla-sshd", "begin", "--seconds", str(TRIAL_SECONDS))
    finally:
        guest.run("rm", "-f", STAGED)
    assert not logs_in(), "nothing was at stake"
    after = booted(guest)
    until(logs_in, BOOT_SECONDS, "the operator gets in")
    assert after.run("test", "-e", SETTINGS).returncode == 1
    assert not after.says("systemctl", "--failed", "--no-legend")


def test_rules_that_shut_everybody_out_are_gone_after_a_reboot(
    guest: Guest, logs_in: Callable[[], bool]
) -> None:
    assert logs_in()
    wanted = guest.says("cat", RULES)
    try:
        guest.says("sed", "-i", "/tcp dport { 22 } accept/d", RULES)
        assert guest.says("cat", RULES) != wanted
        guest.says(FIREWALL, "try", "--seconds", str(TRIAL_SECONDS))
        assert not logs_in(), "nothing was at stake"
        guest = booted(guest)
        until(logs_in, BOOT_SECONDS, "the operator gets in")
        assert '"in_force": true' in guest.says(FIREWALL, "status")
        assert '"trial": false' in guest.says(FIREWALL, "status")
    finally:
        guest.says("sh", "-c", 'printf "%s\\n" "$1" >"$2"', "sh", wanted, RULES)


def test_a_host_that_boots_trusts_no_certificate_before_it_was_told(
    guest: Guest, logs_in: Callable[[], bool]
) -> None:
    trusted = guest.says("cat", CA)
    assert trusted, "nothing was at stake"
    # As one that cannot ask S3.
    guest.says("systemctl", "disable", AGENT)
    try:
        guest = booted(guest)
        until(logs_in, BOOT_SECONDS, "the operator gets in")
        assert not guest.says("cat", CA)
    finally:
        guest.says("systemctl", "enable", "--now", AGENT)
    until(lambda: guest.says("cat", CA) == trusted, BOOT_SECONDS, "the fleet is asked")
    guest = booted(guest)
    until(logs_in, BOOT_SECONDS, "the operator gets in")
    until(lambda: guest.says("cat", CA) == trusted, BOOT_SECONDS, "it asks by itself")

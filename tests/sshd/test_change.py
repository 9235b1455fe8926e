"""Settings that lock people out take themselves back; those that a new login has proved stay."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from sshd.machines import REPO, Machine, configure

from flotilla.wait import until

TOOL = "/usr/local/sbin/flotilla-sshd"
FILE = "/etc/ssh/sshd_config.d/70-trial.conf"
STAGED = "/var/lib/flotilla/sshd/staged"
PAM = "/etc/pam.d/sshd"
KEY = "/root/key"


@pytest.fixture
def changed(host: Machine) -> Machine:
    """A host with the tool, whose root may log in to admin."""
    configure(host, "app")
    host.write(TOOL, (REPO / "roles/base/files/sshd_change.py").read_bytes(), 0o755)
    host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY)
    host.write("/home/admin/.ssh/authorized_keys", host.path(f"{KEY}.pub").read_text(), 0o600)
    host.run("chown", "-R", "admin:", "/home/admin")
    # The image's own have been confirmed.
    host.run("rm", "-rf", STAGED)
    host.write("/etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD:ALL\n", 0o440)
    host.start()
    return host


def stage(host: Machine, text: str, path: str = FILE) -> None:
    host.write(f"{STAGED}{path}", text)


def begin(host: Machine, seconds: int = 60) -> dict:
    return json.loads(host.run(TOOL, "begin", "--seconds", str(seconds)).stdout)


def login(host: Machine, *command: str, control: str = "none") -> subprocess.CompletedProcess[str]:
    options = ["-o", "StrictHostKeyChecking=accept-new", "-o", f"ControlPath={control}"]
    options += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-i", KEY]
    return host.run("ssh", *options, f"admin@{host.address}", *command, check=False)


def is_there(host: Machine, path: str = FILE) -> bool:
    return host.path(path).exists()


def test_a_change_that_a_new_login_proves_stays(changed: Machine) -> None:
    stage(changed, "MaxAuthTries 4\n")
    assert begin(changed, 4) == {"changed": True, "files": [FILE], "seconds": 4}
    done = login(changed, "sudo", TOOL, "confirm")
    assert json.loads(done.stdout) == {"confirmed": True, "files": [FILE]}, done.stderr
    time.sleep(6)
    assert is_there(changed)
    assert begin(changed) == {"changed": False, "files": []}


def test_one_that_keeps_everybody_out_is_taken_back_by_itself(changed: Machine) -> None:
    stage(changed, "DenyUsers admin\n")
    begin(changed, 4)
    assert "Permission denied" in login(changed, "true").stderr
    until(lambda: not is_there(changed), seconds=15)
    until(lambda: login(changed, "true").returncode == 0, seconds=10)
    again = changed.run(TOOL, "confirm", check=False)
    assert (again.returncode, "was put back" in again.stderr) == (1, True)


def test_a_login_from_before_proves_nothing(changed: Machine) -> None:
    master = "/root/master"
    options = ["-o", f"ControlPath={master}", "-o", "ControlMaster=yes", "-o", "BatchMode=yes"]
    options += ["-o", "StrictHostKeyChecking=accept-new", "-i", KEY, "-fN"]
    changed.run("ssh", *options, f"admin@{changed.address}")
    stage(changed, "DenyUsers admin\n")
    begin(changed)
    done = login(changed, "sudo", TOOL, "confirm", control=master)
    assert (done.returncode, "older than the change" in done.stderr) == (1, True), done.stderr
    assert "no login over SSH" in changed.run(TOOL, "confirm", check=False).stderr
    # Whoever is still in may take it back at once.
    assert json.loads(login(changed, "sudo", TOOL, "revert", control=master).stdout)["reverted"]
    until(lambda: login(changed, "true").returncode == 0, seconds=10)


def test_what_sshd_does_not_take_is_never_given_to_it(changed: Machine) -> None:
    stage(changed, "NoSuchWord yes\n")
    done = changed.run(TOOL, "begin", check=False)
    assert (done.returncode, "NoSuchWord" in done.stderr) == (1, True)
    assert not is_there(changed)
    assert login(changed, "true").returncode == 0


def test_a_reload_that_fails_is_taken_back(changed: Machine) -> None:
    stage(changed, "MaxAuthTries 4\n")
    changed.write("/run/cannot-reload", "")
    done = changed.run(TOOL, "begin", check=False)
    assert (done.returncode, "in place again" in done.stderr) == (1, True)
    assert not is_there(changed)


def test_a_revert_that_sshd_does_not_take_up_is_tried_again(changed: Machine) -> None:
    stage(changed, "DenyUsers admin\n")
    begin(changed)
    changed.write("/run/cannot-reload", "")
    done = changed.run(TOOL, "revert", check=False)
    assert (done.returncode, "has not taken it up" in done.stderr) == (1, True)
    changed.path("/run/cannot-reload").unlink()
    assert json.loads(changed.run(TOOL, "revert").stdout)["reverted"]
    until(lambda: login(changed, "true").returncode == 0, seconds=10)


def test_what_is_half_taken_back_is_not_confirmed(changed: Machine) -> None:
    stage(changed, "MaxAuthTries 4\n")
    begin(changed)
    changed.write("/run/cannot-reload", "")
    # On a full disk, too.
    assert changed.run("sh", "-c", f"ulimit -f 0; exec {TOOL} revert", check=False).returncode
    done = login(changed, "sudo", TOOL, "confirm")
    assert (done.returncode, "being taken back" in done.stderr) == (1, True), done
    assert not is_there(changed)
    changed.path("/run/cannot-reload").unlink()
    assert json.loads(changed.run(TOOL, "revert").stdout)["reverted"]


def test_a_full_disk_keeps_nobody_out(changed: Machine) -> None:
    changed.write(FILE, "MaxAuthTries 5\n")
    stage(changed, "DenyUsers admin\n")
    begin(changed)
    # Nobody may write a byte to a file, root included.
    changed.run("sh", "-c", f"ulimit -f 0; exec {TOOL} revert")
    assert changed.path(FILE).read_text() == "MaxAuthTries 5\n"
    until(lambda: login(changed, "true").returncode == 0, seconds=10)


@pytest.mark.parametrize("text", ["", "[]", '{"files": 1, "since_boot": 0}', "\0\0"])
def test_a_damaged_record_is_one_clear_error(changed: Machine, text: str) -> None:
    changed.write("/var/lib/flotilla/sshd/pending.json", text)
    for verb in ("begin", "confirm", "revert"):
        done = changed.run(TOOL, verb, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert "nothing was changed" in done.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "3601", "99999999999999999999"])
def test_a_trial_is_neither_nothing_nor_for_good(changed: Machine, seconds: str) -> None:
    stage(changed, "MaxAuthTries 4\n")
    done = changed.run(TOOL, "begin", f"--seconds={seconds}", check=False)
    assert (done.returncode, "must be 1 to 3600" in done.stderr) == (1, True)
    assert not is_there(changed)


# The tool, killed before the n-th of what it does to files and with other programs.
KILLED = f"""
import os, runpy, signal, sys
left, deeds = int(sys.argv.pop(1)), {{"open", "os.rename", "os.remove", "os.link", "os.mkdir",
    "os.rmdir", "os.chown", "subprocess.Popen"}}
def hook(event, details):
    global left
    if event in deeds and (event != "open" or (details[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.argv[0] = "{TOOL}"
sys.addaudithook(hook)
runpy.run_path("{TOOL}", run_name="__main__")
"""


def test_a_way_back_that_is_killed_at_any_step_is_gone_to_its_end(changed: Machine) -> None:
    other = FILE.replace("70", "71")
    changed.write(FILE, "MaxAuthTries 5\n")
    deed, is_going = 0, True
    while is_going:
        deed += 1
        stage(changed, "MaxAuthTries 4\n")
        stage(changed, "MaxSessions 19\n", other)
        begin(changed)
        done = changed.run("python3", "-c", KILLED, str(deed), "revert", check=False)
        is_going = bool(done.returncode)
        is_kept = login(changed, "sudo", TOOL, "confirm").returncode == 0
        texts = [changed.path(FILE).read_text(), is_there(changed, other)]
        assert not is_kept or texts == ["MaxAuthTries 4\n", True], deed
        # The timer's next attempt, where something was begun.
        changed.run(TOOL, "revert")
        if is_kept:
            changed.path(other).unlink()
            changed.write(FILE, "MaxAuthTries 5\n")
        assert changed.path(FILE).read_text() == "MaxAuthTries 5\n", deed
        assert not is_there(changed, other), deed
    assert deed > 5


def test_a_change_that_is_killed_at_any_step_can_be_taken_back(changed: Machine) -> None:
    changed.write(FILE, "MaxAuthTries 5\n")
    before = changed.path(PAM).read_text()
    deed, is_going = 0, True
    while is_going:
        stage(changed, "DenyUsers admin\n")
        stage(changed, "account required pam_deny.so\n" + before, PAM)
        deed, is_going = deed + 1, False
        for verb in ("begin", "revert"):
            done = changed.run("python3", "-c", KILLED, str(deed), verb, check=False)
            is_going = is_going or bool(done.returncode)
        changed.run(TOOL, "revert")
        assert changed.path(FILE).read_text() == "MaxAuthTries 5\n", deed
        assert changed.path(PAM).read_text() == before, deed
    assert deed > 10
    until(lambda: login(changed, "true").returncode == 0, seconds=10)


# The host's disk, of which ext4 writes only its journal before the power goes.
DISK = "/root/disk"
POWER_LOSS = f"""
import fcntl, os
fcntl.ioctl(os.open("{DISK}", os.O_RDONLY), 0x8004587D, (1).to_bytes(4, "little"))
"""


def plug(host: Machine) -> None:
    """Have what the tool writes on a disk of its own."""
    host.run("mkdir", "-p", DISK)
    if (done := host.run("mount", "-o", "loop", f"{DISK}.img", DISK, check=False)).returncode:
        pytest.skip(f"no disk of a file here: {done.stderr}")
    for path in ("/etc/ssh/sshd_config.d", "/var/lib/flotilla"):
        host.run("mkdir", "-p", path, f"{DISK}{path}")
        host.run("mount", "--bind", f"{DISK}{path}", path)


def test_what_was_confirmed_is_whole_after_a_power_loss(changed: Machine) -> None:
    changed.run("truncate", "--size=16M", f"{DISK}.img")
    subprocess.run(["mkfs.ext4", "-q", str(changed.path(f"{DISK}.img"))], check=True)
    plug(changed)
    stage(changed, "MaxAuthTries 4\n")
    begin(changed)
    done = login(changed, "sudo", TOOL, "confirm")
    assert done.returncode == 0, done.stderr
    changed.run("python3", "-c", POWER_LOSS)
    changed.run("umount", "/etc/ssh/sshd_config.d", "/var/lib/flotilla", DISK)
    plug(changed)
    assert not json.loads(changed.run(TOOL, "revert", "--at-boot").stdout)["reverted"]
    assert changed.path(FILE).read_text() == "MaxAuthTries 4\n"


def test_pam_is_changed_the_same_way(changed: Machine) -> None:
    before = changed.path(PAM).read_text()
    stage(changed, "account required pam_deny.so\n" + before, PAM)
    begin(changed, 4)
    assert login(changed, "true").returncode
    until(lambda: changed.path(PAM).read_text() == before, seconds=15)
    until(lambda: login(changed, "true").returncode == 0, seconds=10)


def test_a_reboot_in_between_takes_it_back(changed: Machine) -> None:
    """The timer is gone then; a unit before sshd does it."""
    stage(changed, "DenyUsers admin\n")
    begin(changed)
    assert json.loads(changed.run(TOOL, "revert", "--at-boot").stdout)["reverted"]
    assert not is_there(changed)


def test_the_next_change_takes_back_one_that_nobody_proved(changed: Machine) -> None:
    stage(changed, "DenyUsers admin\n")
    begin(changed)
    stage(changed, "MaxAuthTries 4\n")
    assert begin(changed)["changed"]
    assert login(changed, "sudo", TOOL, "confirm").returncode == 0
    assert changed.path(FILE).read_text() == "MaxAuthTries 4\n"


def test_what_somebody_changed_by_hand_is_put_right(changed: Machine) -> None:
    stage(changed, "MaxAuthTries 4\n")
    begin(changed)
    login(changed, "sudo", TOOL, "confirm")
    changed.write(FILE, "MaxAuthTries 1\n")
    assert begin(changed)["changed"]
    assert login(changed, "sudo", TOOL, "confirm").returncode == 0


def test_on_a_host_that_becomes_an_image_they_are_put_in_place(changed: Machine) -> None:
    stage(changed, "MaxAuthTries 4\n")
    assert json.loads(changed.run(TOOL, "place").stdout) == {"changed": True, "files": [FILE]}
    assert json.loads(changed.run(TOOL, "place").stdout) == {"changed": False, "files": []}
    assert not Path(changed.path("/var/lib/flotilla/sshd/pending.json")).exists()

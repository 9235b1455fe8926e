"""Who gets in and who does not, by sshd itself, and that each leaves a line in its log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
import yaml
from mysqld.binaries import NoImageError
from sshd.fleet import Fleet, fleet
from sshd.machines import REPO
from sshd.token import TOUCHED, VERIFIED, Token
from templates.conftest import render_template

from flotilla.agent.access import apply
from flotilla.errors import Refused
from flotilla.hosts import certificates
from flotilla.rules import access as rules
from flotilla.wait import until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    try:
        with fleet(tmp_path_factory.mktemp("fleet")) as made:
            yield made
    except NoImageError as error:
        pytest.skip(str(error))


def refused(log: str) -> list[str]:
    return [line for line in log.splitlines() if rules.is_refusal(line)]


def test_a_certificate_leads_through_the_bastion_without_a_question(running: Fleet) -> None:
    kit, serial = running.kit()
    done = running.ssh(kit, "app-1", "id", "-un")
    assert done.stdout == "admin\n", done.stderr
    seen = {
        one.account: one for line in running.bastion.log.splitlines() if (one := rules.login(line))
    }
    assert (seen["jump"].name, seen["jump"].serial) == ("alice", serial)
    # By it a forged certificate with a serial that was granted is told from the real one.
    key = running.client.path(f"{kit}/key.pub").read_text()
    assert seen["jump"].fingerprint == certificates.fingerprint(key)
    inner = [one for line in running.host.log.splitlines() if (one := rules.login(line))]
    assert (inner[-1].account, inner[-1].serial) == ("admin", serial)


def test_a_host_that_boots_takes_no_certificate_before_it_was_told(running: Fleet) -> None:
    """Who was revoked while it was down stays out, and the fleet's own key gets in."""
    kit, _ = running.kit()
    files = yaml.safe_load((REPO / "roles/base/vars/main.yml").read_text())["__base_baked_files"]
    dest = next(one["dest"] for one in files if one["src"] == "tmpfiles.conf.j2")
    ca = "/etc/ssh/flotilla/user_ca.pub"
    for host in (running.bastion, running.host):
        trusted = host.path(ca).read_text()
        host.write(dest, render_template("base", "tmpfiles.conf.j2", host=host.name))
        prepare = ["systemd-tmpfiles", "--create", "--prefix", "/etc/ssh/flotilla"]
        host.run(*prepare)
        assert host.path(ca).read_text() == trusted, "a package that is installed is no boot"
        host.run(*prepare, "--boot")
        assert host.path(ca).read_text() == ""
        assert running.operator("admin", host, "id", "-un").stdout == "admin\n"
        assert running.ssh(kit, "app-1", "true").returncode
        running.tell()
        assert running.ssh(kit, "app-1", "true").returncode == 0


def test_the_bastion_gives_no_shell(running: Fleet) -> None:
    kit, _ = running.kit()
    for words in (["bastion-1", "id"], ["-tt", "bastion-1"], ["-s", "bastion-1", "sftp"]):
        done = running.ssh(kit, *words)
        assert done.returncode
        assert done.stdout == ""
    assert any("no more sessions" in line for line in refused(running.bastion.log))


def test_nothing_but_port_22_is_forwarded(running: Fleet) -> None:
    kit, _ = running.kit()
    serve = [sys.executable, "-m", "http.server", "8088", "--bind", "127.0.1.2"]
    with running.host.beside(*serve):
        probe = ["bash", "-c", "exec 3<>/dev/tcp/127.0.1.2/8088"]
        until(lambda: not running.client.run(*probe, check=False).returncode, seconds=20)
        done = running.ssh(kit, "-W", "127.0.1.2:8088", "bastion-1")
    assert "administratively prohibited" in done.stderr
    assert any("127.0.1.2 port 8088" in line for line in running.bastion.log.splitlines())


@pytest.mark.parametrize(
    "words",
    [
        ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "18088:127.0.0.1:22"],
        ["-W", "/run/systemd/private"],
    ],
)
def test_nobody_listens_on_the_bastion_or_reaches_its_sockets(running: Fleet, words) -> None:
    kit, _ = running.kit()
    assert running.ssh(kit, *words, "bastion-1").returncode


def test_a_certificate_is_no_way_to_the_bastions_own_account(running: Fleet) -> None:
    kit, _ = running.kit()
    done = running.ssh(kit, "-l", "admin", "bastion-1", "id")
    assert "Permission denied" in done.stderr
    done = running.ssh(kit, "-J", "bastion-1", "-o", "HostName=127.0.1.1", "app-1", "id")
    assert "Permission denied" in done.stderr, "nor through the jump"


def test_one_that_ended_is_refused(running: Fleet) -> None:
    kit, _ = running.kit(hours=-1)
    assert "Permission denied" in running.ssh(kit, "bastion-1", "true").stderr
    assert any("expired" in line for line in refused(running.bastion.log))


def test_one_of_another_ca_or_for_something_else_is_refused(running: Fleet) -> None:
    for kit, _ in (running.kit(ca=certificates.new_ca()), running.kit(principal="other")):
        assert "Permission denied" in running.ssh(kit, "bastion-1", "true").stderr
    assert sum("Failed publickey for jump" in line for line in refused(running.bastion.log)) >= 2


def test_a_revoked_one_is_refused_at_once_and_the_others_are_not(running: Fleet) -> None:
    kit, serial = running.kit()
    other, _ = running.kit()
    assert running.ssh(kit, "app-1", "true").returncode == 0
    running.revoke(serial)
    assert "Permission denied" in running.ssh(kit, "app-1", "true").stderr
    assert any("revoked by file" in line for line in refused(running.bastion.log))
    assert running.ssh(other, "app-1", "true").returncode == 0


def test_a_host_that_shows_another_hosts_certificate_is_refused(running: Fleet) -> None:
    kit, _ = running.kit()
    # The name is one that the certificate is not for; nothing else differs.
    done = running.ssh(kit, "-o", "HostKeyAlias=app-2", "app-1", "true")
    assert done.returncode
    assert "not listed" in done.stderr or "verification failed" in done.stderr


def test_the_fleets_own_key_goes_on_working_and_opens_no_jump(running: Fleet) -> None:
    assert running.operator("admin", running.bastion, "id", "-un").stdout == "admin\n"
    assert running.operator("admin", running.host, "id", "-un").stdout == "admin\n"
    assert running.operator("jump", running.bastion, "true").returncode


def test_every_login_that_sshd_writes_is_one_that_the_audit_can_read(running: Fleet) -> None:
    kit, _ = running.kit()
    assert running.ssh(kit, "app-1", "true").returncode == 0
    assert running.operator("admin", running.host, "true").returncode == 0
    for machine in (running.bastion, running.host):
        said = [line for line in machine.log.splitlines() if rules.is_login(line)]
        read = [seen for seen in map(rules.login, said) if seen]
        assert len(read) == len(said) > 0, said
        assert any(seen.serial for seen in read)


def test_paramiko_connects_through_a_bastion_that_is_post_quantum_only(running: Fleet) -> None:
    script = (
        "import paramiko, sys\n"
        "key = paramiko.Ed25519Key.from_private_key_file(sys.argv[1])\n"
        "outer, inner = paramiko.Transport(('127.0.1.1', 22)), None\n"
        "outer.connect(username='admin', pkey=key)\n"
        "way = outer.open_channel('direct-tcpip', ('127.0.1.2', 22), ('127.0.0.1', 0))\n"
        "inner = paramiko.Transport(way)\n"
        "inner.connect(username='admin', pkey=key)\n"
        "print(outer.host_key.get_name(), inner.is_authenticated())\n"
        "inner.close(); outer.close()\n"
    )
    key = running.client.path("/root/operator")
    done = running.client.here(sys.executable, "-c", script, str(key))
    assert done.stdout == "ssh-ed25519 True\n", f"paramiko {paramiko.__version__}: {done.stderr}"


def test_dozens_of_connections_at_once_get_through(running: Fleet) -> None:
    kit, _ = running.kit()
    patient = f"ssh -F {kit}/ssh_config -o ConnectTimeout=60"
    many = f"for n in $(seq 40); do {patient} app-1 true & done; wait"
    before = running.host.log.count("Accepted publickey")
    running.client.run("bash", "-c", many, seconds=120)
    assert running.host.log.count("Accepted publickey") - before == 40


def test_without_a_second_factor_nobody_jumps(tmp_path: Path) -> None:
    try:
        with fleet(tmp_path, bastion_second_factor="sk") as made:
            plain, _ = made.kit()
            assert "Permission denied" in made.ssh(plain, "bastion-1", "true").stderr
            assert any("not in PubkeyAcceptedAlgorithms" in x for x in refused(made.bastion.log))
            answers = {}
            for proof in (TOUCHED, TOUCHED | VERIFIED):
                token = Token(made.client.path(f"/run/token-{proof}"), proof)
                kit, _ = made.kit(token.public)
                agent = ["-o", f"IdentityAgent=/run/token-{proof}", "-o", f"IdentityFile={kit}/key"]
                answers[proof] = made.ssh(kit, *agent, "-W", "127.0.1.2:22", "bastion-1")
                token.close()
            assert "Permission denied" in answers[TOUCHED].stderr, "a touch alone"
            assert any("user verification" in line for line in refused(made.bastion.log))
            assert answers[TOUCHED | VERIFIED].stdout.startswith("SSH-2.0-OpenSSH"), (
                made.bastion.log
            )
            assert made.operator("admin", made.bastion, "true").returncode == 0
    except NoImageError as error:
        pytest.skip(str(error))


def test_a_list_that_sshd_cannot_read_never_gets_there(running: Fleet) -> None:
    """sshd would take no key of anybody, not even the fleet's own."""
    public = certificates.public_of(running.ca, "people")
    folder = running.host.path("/etc/ssh/flotilla")
    before = (folder / "revoked").read_bytes()
    for broken in (b"", b"garbage", rules.KRL_MAGIC + b"\0" * 9):
        with pytest.raises(Refused):
            apply(rules.trust(public, broken, 10**6, "admin"), "app", folder)
    assert (folder / "revoked").read_bytes() == before
    assert running.operator("admin", running.host, "true").returncode == 0

"""Letting people in and out, against moto's S3, SSM and DynamoDB and a real ssh-keygen."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fleets import Make, maker
from moto import mock_aws

from flotilla.access import authority, operate
from flotilla.access.authority import Authority
from flotilla.access.kit import Kit
from flotilla.agent import access as agent
from flotilla.aws import grants
from flotilla.aws.session import client
from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.hosts import certificates
from flotilla.hosts.ssh import Result, Results
from flotilla.provision import storage
from flotilla.rules import access as rules
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot

NOW = 1_800_000_000.0
DAY = 86_400


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A fleet with its buckets, tables and secrets, and without hosts."""
    make: Make = maker(tmp_path)
    with mock_aws():
        for stage in storage.stages(make()):
            for change in stage:
                change.act()
        yield make().settings


@pytest.fixture
def key(tmp_path: Path) -> Path:
    made = tmp_path / "alice"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made)], check=True)
    return made.with_suffix(".pub")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for consoles that moto does not have."""
    monkeypatch.setattr(operate, "prepare", lambda *_, **__: [])


def let_in(settings: Settings, key: Path, name: str = "alice", hours: float = 8) -> dict:
    return operate.grant(
        settings, name, key, hours=hours, principal="ops",
        confirmed=lambda _: None, said=lambda _: None, clock=lambda: NOW,
    )  # fmt: skip


def test_a_grant_is_signed_recorded_and_has_all_that_openssh_needs(settings, key):
    done = let_in(settings, key)
    folder = Path(done["folder"])
    certificate = (folder / "key-cert.pub").read_text()
    found = certificates.read(certificate)
    signer = Authority(settings)
    assert found == certificates.Certificate(
        done["fingerprint"], certificates.fingerprint(signer.user), ("ops",), int(NOW + 8 * 3600)
    )
    assert [one.name for one in grants.granted(settings)] == ["alice"]
    assert (folder / "known_hosts").read_text().startswith(f"@cert-authority * {signer.host}\n")
    assert json.loads(grants.published(settings)[0])["user_ca"] == signer.user


def machine(name: str, private: str, public: str | None = None) -> Host:
    role, _, number = name.partition("-")
    return Host(
        name, f"i-{name}", role, int(number), "eu-central-1a", "running", private, public, "ami-1",
        "t3.small", datetime(2026, 1, 1, tzinfo=UTC), {}, None,
    )  # fmt: skip


def test_openssh_jumps_where_the_kit_says_and_asks_nobody(settings, tmp_path):
    hosts = (machine("bastion-1", "10.0.0.4", "192.0.2.1"), machine("app-1", "10.0.0.5"))
    kit = Kit(settings, Snapshot(0.0, hosts), "ssh-ed25519 AAAA")
    config = tmp_path / "config"
    config.write_text(kit.ssh_config("alice"))

    def seen(name: str) -> dict[str, str]:
        asked = ["ssh", "-G", "-F", str(config), name]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)

    bastion, app, new = seen("bastion-1"), seen("app-1"), seen("10.0.0.99")
    assert (bastion["user"], bastion["hostname"]) == ("jump", "192.0.2.1")
    assert "proxyjump" not in bastion
    for one, address in ((app, "10.0.0.5"), (new, "10.0.0.99")):
        assert (one["user"], one["hostname"]) == (settings.ssh.user, address)
        assert one["proxyjump"] == "bastion-1"
        assert one["stricthostkeychecking"] in {"yes", "true"}
        assert one["identityfile"] == f"~/.ssh/{settings.prefix}/key"


def test_an_rsa_key_that_is_too_small_is_not_granted(settings, tmp_path):
    key = tmp_path / "rsa"
    argv = ["ssh-keygen", "-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", str(key)]
    subprocess.run(argv, check=True)
    with pytest.raises(BadOption, match="RSA key of 1024 bits"):
        let_in(settings, Path(f"{key}.pub"))
    assert grants.granted(settings) == []


def test_every_certificate_has_a_serial_of_its_own(settings, key):
    assert [let_in(settings, key)["serial"] for _ in range(3)] == [1, 2, 3]


def test_the_cas_private_keys_stay_in_ssm(settings, key):
    let_in(settings, key)
    for kind in ("user", "host"):
        name = settings.parameter("ssh", f"{kind}_ca")
        found = client(settings, "ssm").get_parameter(Name=name, WithDecryption=True)["Parameter"]
        assert found["Type"] == "SecureString"
        # What comes before is the public half again.
        secret = found["Value"].splitlines()[3]
        for path in (p for p in settings.scratch.rglob("*") if p.is_file()):
            assert secret not in path.read_text(errors="replace"), path
        assert secret.encode() not in grants.published(settings)[0]


def revoke(settings: Settings, name: str = "alice", now: float = NOW) -> dict:
    return operate.revoke(
        settings, name, confirmed=lambda _: None, said=lambda _: None, clock=lambda: now
    )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one host: its /etc/ssh/flotilla, told by the agent's own code."""
    folder = tmp_path / "host"

    def tell(settings: Settings, body: bytes) -> dict[str, str | None]:
        told = json.dumps(agent.apply(body, "app", folder))
        generation = json.loads(body)["generation"]
        return {"app-1": operate._why(Result("app-1", told, "", 0, 0.0), generation)}

    monkeypatch.setattr(operate, "tell", tell)
    return folder


def refuses(folder: Path, certificate: Path) -> bool:
    asked = ["ssh-keygen", "-Q", "-f", str(folder / "revoked"), str(certificate)]
    return bool(subprocess.run(asked, capture_output=True, check=False).returncode)


def test_a_revoked_certificate_is_refused_by_the_host_and_nobody_elses(settings, key, host):
    alice = Path(let_in(settings, key)["folder"]) / "key-cert.pub"
    bob = Path(let_in(settings, key, "bob")["folder"]) / "key-cert.pub"
    done = revoke(settings)
    assert (done["revoked"], done["generation"], done["hosts"]) == ([1], 1, {"app-1": None})
    assert (refuses(host, alice), refuses(host, bob)) == (True, False)
    states = {
        one["name"]: one["state"] for one in operate.listed(settings, every=True, clock=lambda: NOW)
    }
    assert states == {"alice": "revoked", "bob": "valid"}
    assert [one["name"] for one in operate.listed(settings, every=False, clock=lambda: NOW)] == [
        "bob"
    ]


def test_a_revocation_that_was_cut_off_is_finished_by_the_same_command(
    settings, key, host, monkeypatch
):
    alice = Path(let_in(settings, key)["folder"]) / "key-cert.pub"
    with monkeypatch.context() as patch:
        patch.setattr(operate, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            revoke(settings)
    assert json.loads(grants.published(settings)[0])["generation"] == 0
    done = revoke(settings)
    assert (done["revoked"], done["generation"]) == ([], 1)
    assert refuses(host, alice)


def test_a_host_that_does_not_confirm_is_named(settings, key, monkeypatch):
    let_in(settings, key)
    monkeypatch.setattr(operate, "tell", lambda *_: {"app-1": None, "app-2": "no answer"})
    with pytest.raises(HostFailed, match="app-2 did not confirm it"):
        revoke(settings)
    assert grants.revoked(settings) == {1}


def test_nobody_is_revoked_who_was_not_granted_or_whose_time_is_over(settings, key, host):
    with pytest.raises(Refused, match="none was ever granted"):
        revoke(settings)
    let_in(settings, key)
    with pytest.raises(Refused, match="all have ended"):
        revoke(settings, now=NOW + 8 * 3600 + DAY)


def test_a_host_never_goes_back_to_an_older_list(settings, key, host):
    let_in(settings, key)
    old, _ = grants.published(settings)
    revoke(settings)
    with pytest.raises(Refused, match="generation 0"):
        agent.apply(old, "app", host)


def test_no_older_list_replaces_a_newer_one(settings, key, host, monkeypatch):
    """As when fleet.configure read the records just before a revocation, and publishes after it."""
    alice = Path(let_in(settings, key)["folder"]) / "key-cert.pub"
    signer, read, late = Authority(settings), grants.revoked, []

    def revoked_meanwhile(settings: Settings) -> set[int]:
        found = read(settings)
        if not late:
            late.append(True)
            revoke(settings)
        return found

    monkeypatch.setattr(grants, "revoked", revoked_meanwhile)
    # Something of its own to say, so that it publishes.
    signer.user = signer.user.replace("people@", "all@")
    assert authority.publish(settings, signer)
    body, _ = grants.published(settings)
    assert json.loads(body)["generation"] == 1
    agent.apply(body, "app", host.with_name("launched-later"))
    assert refuses(host.with_name("launched-later"), alice)


def test_what_was_granted_while_the_plan_was_read_is_revoked_too(settings, key, host):
    let_in(settings, key)
    done = operate.revoke(
        settings, "alice", confirmed=lambda _: let_in(settings, key) and None,
        said=lambda _: None, clock=lambda: NOW,
    )  # fmt: skip
    assert done["revoked"] == [1, 2]


def test_one_that_a_host_with_a_slow_clock_takes_can_still_be_revoked(settings, key, host):
    let_in(settings, key)
    assert revoke(settings, now=NOW + 8 * 3600 + DAY - 60)["revoked"] == [1]


def test_publishing_twice_changes_nothing(settings, key):
    signer = Authority(settings)
    assert authority.publish(settings, signer)
    assert not authority.publish(settings, signer)


@pytest.mark.parametrize("text", ["", "-----BEGIN OPENSSH PRIVATE KEY-----", "ssh-dss AAAA"])
def test_what_is_no_public_key_is_a_bad_option(settings, tmp_path, text):
    file = tmp_path / "bad"
    file.write_text(text)
    with pytest.raises(BadOption):
        let_in(settings, file)
    with pytest.raises(BadOption, match="No such file"):
        let_in(settings, tmp_path / "nothing")
    with pytest.raises(BadOption, match="home"):
        let_in(settings, Path("~nobody-of-this-name/key.pub"))
    assert grants.granted(settings) == []


def test_a_key_that_only_looks_like_one_is_refused(settings, tmp_path):
    file = tmp_path / "bad"
    file.write_text("ssh-ed25519 AAAAgarbage\n")
    with pytest.raises(Refused, match="ssh-keygen"):
        let_in(settings, file)
    assert grants.granted(settings) == []


@pytest.mark.parametrize("kind", ["user", "host"])
@pytest.mark.parametrize("spoilt", ["garbage", "cut", "passphrase", "rsa"])
def test_a_cas_key_that_cannot_sign_is_found_before_anything_is_recorded(
    settings, key, tmp_path, kind, spoilt
):
    name = settings.parameter("ssh", f"{kind}_ca")
    made = {"passphrase": ["-t", "ed25519", "-N", "secret"], "rsa": ["-t", "rsa", "-N", ""]}
    file = tmp_path / "ca"
    if spoilt in made:
        subprocess.run(["ssh-keygen", "-q", "-f", str(file), *made[spoilt]], check=True)
        value = file.read_text()
    else:
        value = certificates.new_ca()[:90] if spoilt == "cut" else "garbage"
    client(settings, "ssm").put_parameter(
        Name=name, Value=value, Type="SecureString", Overwrite=True
    )
    with pytest.raises(Refused, match="the CA's key in SSM"):
        let_in(settings, key)
    assert grants.granted(settings) == []
    assert grants.published(settings) == (b"", "")


def test_the_cas_key_is_never_a_file(settings, key, tmp_path, monkeypatch):
    """What is killed while it signs would leave it behind."""
    monkeypatch.setattr(certificates.tempfile, "tempdir", str(tmp_path))
    seen = tmp_path / "seen"
    real = subprocess.run(["which", "ssh-keygen"], capture_output=True, text=True, check=True)
    script = f"""#!/bin/sh
grep -rl 'PRIVATE K[E]Y' {tmp_path} >>{seen}
echo "$@" >>{seen}
exec {real.stdout.strip()} "$@"
"""
    program = tmp_path / "bin/ssh-keygen"
    program.parent.mkdir()
    program.write_text(script)
    program.chmod(0o755)
    (tmp_path / "alice").unlink()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    let_in(settings, key)
    said = seen.read_text()
    assert "-s /dev/stdin" in said
    assert not [line for line in said.splitlines() if line.startswith("/")]


def test_a_fleet_without_the_cas_keys_says_what_makes_them(settings, key):
    client(settings, "ssm").delete_parameter(Name=settings.parameter("ssh", "user_ca"))
    with pytest.raises(Refused) as raised:
        let_in(settings, key)
    assert raised.value.next == "fab fleet.provision"


def test_a_hosts_certificate_is_kept_until_half_of_it_is_over(settings, key):
    signer, now = Authority(settings), int(NOW)
    public = key.read_text()
    names = ["app-1", "10.0.0.1"]

    def renewed(text: str, **changes: object) -> str:
        given = {"key": public, "names": names, "now": now} | changes
        mine, called, at = given["key"], given["names"], given["now"]
        if certificates.lasts(text, mine, signer.host, called, now=at):
            return text
        return signer.machine(mine, called, now=at)

    first = renewed("")
    found = certificates.read(first)
    assert found
    assert found.principals == ("app-1", "10.0.0.1")
    assert renewed(first) == first
    assert renewed(first, names=[*reversed(names)]) == first
    later = now + rules.HOST_SECONDS // 2 + 1
    for changes in ({"names": ["app-2", "10.0.0.1"]}, {"now": later}, {"key": signer.user}):
        assert renewed(first, **changes) != first
    assert renewed("garbage") != "garbage"


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"generation": "x"}', '{"generation": null, "sha256": 1}']
)
def test_a_damaged_note_of_what_is_in_place_stops_no_revocation(settings, key, host, text):
    alice = Path(let_in(settings, key)["folder"]) / "key-cert.pub"
    host.mkdir()
    (host / "applied.json").write_text(text)
    revoke(settings)
    assert refuses(host, alice)
    assert agent.applied(host)["generation"] == 1


def test_the_watch_puts_a_damaged_file_right_by_itself(settings, key, tmp_path):
    authority.publish(settings, Authority(settings))
    body, _ = grants.published(settings)
    folder = tmp_path / "watched"
    watch = agent.Watch(lambda etag: None if etag == "1" else ("1", body), "app", folder)
    watch.look()
    whole = (folder / "revoked").read_bytes()
    for damage in (b"", whole[:20], None):
        (folder / "revoked").unlink()
        if damage is not None:
            (folder / "revoked").write_bytes(damage)
        for _ in range(agent.ALL_EVERY):
            watch.look()
        assert (folder / "revoked").read_bytes() == whole


def test_the_first_look_puts_back_the_ca_that_was_emptied_at_boot(settings, key, tmp_path):
    authority.publish(settings, Authority(settings))
    body, _ = grants.published(settings)
    folder = tmp_path / "watched"
    agent.apply(body, "app", folder)
    trusted = (folder / "user_ca.pub").read_bytes()
    (folder / "user_ca.pub").write_bytes(b"")
    # S3 answers by the ETag it is given: a host that boots has none.
    agent.Watch(lambda etag: None if etag else ("1", body), "app", folder).look()
    assert (folder / "user_ca.pub").read_bytes() == trusted


def test_the_watch_takes_what_is_new_and_keeps_what_it_has(settings, key, tmp_path, caplog):
    authority.publish(settings, Authority(settings))
    body, _ = grants.published(settings)
    folder = tmp_path / "watched"
    answers = [("1", body), None, ("2", b"garbage"), OSError("away")]

    def ask(etag: str) -> tuple[str, bytes] | None:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    watch = agent.Watch(ask, "app", folder)
    for _ in range(4):
        watch.look()
    assert (folder / "user_ca.pub").read_text().startswith("ssh-ed25519 ")
    assert (folder / "principals/admin").read_text() == "ops\n"
    assert agent.applied(folder)["generation"] == 0
    assert "what is in place stays: away" in caplog.text


@dataclass
class Logs:
    """A runner whose hosts have journals: by name, what the command printed."""

    journals: dict[str, str]

    def run_on(self, hosts: Sequence[Host], command: str, **_: Any) -> Results:
        assert command.endswith(f"--since=@{round(NOW) - 24 * 3600}")
        return Results(
            {one.name: Result(one.name, self.journals[one.name], "", 0, 0.0) for one in hosts}
        )


def test_an_audit_names_hosts_that_do_not_tell_of_all_hours(settings, monkeypatch):
    def journal(begins: float) -> str:
        first = {"__REALTIME_TIMESTAMP": str(round(begins * 1e6)), "PRIORITY": "6"}
        login = {
            "__REALTIME_TIMESTAMP": str(round(NOW * 1e6)),
            "_SYSTEMD_UNIT": rules.SSHD,
            "MESSAGE": "Accepted publickey for admin from 10.0.0.5 port 1 ssh2: ED25519 SHA256:k",
        }
        return f"{json.dumps(first)}\n{json.dumps(login)}\n"

    old, new = NOW - 9 * DAY, NOW - 3600
    born = {"app-1": old, "app-2": old, "app-3": new, "app-4": old}
    hosts = [
        replace(machine(name, "10.0.0.5"), launched_at=datetime.fromtimestamp(at, UTC))
        for name, at in born.items()
    ]
    away = replace(machine("redis-1", "10.0.0.9"), state="stopped")
    begun = {"app-1": old, "app-2": NOW - 7200, "app-3": new + 60}
    runner = Logs({"app-4": ""} | {name: journal(at) for name, at in begun.items()})

    @contextmanager
    def reached(_: Settings) -> Iterator[Any]:
        yield runner, hosts, [away]

    monkeypatch.setattr(operate, "_reached", reached)
    found = operate.audited(settings, hours=24, clock=lambda: NOW)
    assert {one["host"] for one in found["logins"]} == {"app-1", "app-2", "app-3"}
    assert set(found["silent"]) == {"app-2", "app-4", "redis-1"}
    assert found["problems"] == []

"""What Redis and its Sentinel are told by Ansible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest

Render = Callable[..., str]
PASSWORDS = {
    f"redis_{who}_password": f"{who}-secret"
    for who in ("app", "replication", "sentinel", "monitor")
}


@pytest.fixture
def rendered(render: Render) -> Callable[..., str]:
    def on_host(template: str, *, host: str = "redis-2", **overrides: object) -> str:
        return render("redis", template, host=host, **PASSWORDS, **overrides)

    return on_host


def settings(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def accounts(text: str) -> dict[str, str]:
    return {line.split()[1]: line for line in text.splitlines() if line}


def test_no_file_of_ansible_says_who_is_primary(rendered: Callable[..., str]) -> None:
    names = {"replicaof", "slaveof", "include"}
    assert not names & settings(rendered("flotilla.conf.j2")).keys()
    assert "replicaof" not in rendered("redis-server.conf.j2")


def test_the_role_of_a_start_is_read_last(rendered: Callable[..., str]) -> None:
    line = next(
        line
        for line in rendered("redis-server.conf.j2").splitlines()
        if line.startswith("ExecStart=/")
    )
    order = [line.index(p) for p in ("redis/redis.conf", "redis/flotilla.conf", "redis/role.conf")]
    assert order == sorted(order)


def test_redis_listens_on_its_private_address_and_the_loopback_only(
    rendered: Callable[..., str],
) -> None:
    assert settings(rendered("flotilla.conf.j2"))["bind"] == "10.77.5.2 127.0.0.1"


def test_a_primary_without_replicas_refuses_writes(rendered: Callable[..., str]) -> None:
    found = settings(rendered("flotilla.conf.j2"))
    assert found["min-replicas-to-write"] == "1"
    assert 2 <= int(found["min-replicas-max-lag"]) <= 10
    assert (found["appendonly"], found["appendfsync"]) == ("yes", "everysec")


@pytest.mark.parametrize("down_after_ms", [1000, 1500, 3000, 30000])
def test_a_dead_redis_restarts_after_its_death_was_noticed(
    rendered: Callable[..., str], down_after_ms: int
) -> None:
    text = rendered("redis-server.conf.j2", redis_down_after_ms=down_after_ms)
    delay = next(li for li in text.splitlines() if li.startswith("RestartSec="))
    assert int(delay.partition("=")[2]) * 1000 >= down_after_ms + 2000


@pytest.mark.parametrize("template", ["users.acl.j2", "sentinel.acl.j2"])
def test_nobody_is_let_in_without_an_account(rendered: Callable[..., str], template: str) -> None:
    found = accounts(rendered(template))
    assert found["default"].startswith("user default off resetpass ")
    assert "nopass" not in found["default"]


def test_accounts_hold_hashes_and_no_password(rendered: Callable[..., str]) -> None:
    for template in ("users.acl.j2", "sentinel.acl.j2"):
        text = rendered(template)
        assert not [p for p in PASSWORDS.values() if p in text]
    app = accounts(rendered("users.acl.j2"))["app"]
    assert "#" + hashlib.sha256(b"app-secret").hexdigest() in app


def test_the_application_is_kept_from_other_keys_and_from_administration(
    rendered: Callable[..., str],
) -> None:
    app = accounts(rendered("users.acl.j2", redis_app_keys=["session:*", "cache:*"]))["app"].split()
    assert "~session:*" in app
    assert "~cache:*" in app
    assert "~*" not in app
    assert "~flotilla_ledger:*" in app, "a drill writes as the application"
    assert [one for one in accounts(rendered("users.acl.j2"))["app"].split() if one[0] == "~"] == [
        "~*"
    ], "Redis refuses a pattern beside all keys"
    assert app.index("+@all") < app.index("-@admin") < app.index("-@dangerous")


def test_the_monitor_account_can_change_nothing(rendered: Callable[..., str]) -> None:
    for template in ("users.acl.j2", "sentinel.acl.j2"):
        monitor = accounts(rendered(template))["monitor"].split()
        granted = {word for word in monitor if word.startswith("+")}
        assert not {g for g in granted if "@" in g}
        assert not granted & {"+config|set", "+sentinel", "+sentinel|set", "+slaveof", "+replicaof"}


def test_the_host_knows_all_hosts_and_who_is_first(rendered: Callable[..., str]) -> None:
    found = json.loads(rendered("flotilla.json.j2"))
    assert found["hosts"] == {f"redis-{n}": f"10.77.5.{n}" for n in (1, 2, 3)}
    assert found["initial"] == "redis-1"
    assert found["sentinel"]["quorum"] == "2"


def test_redis_listens_with_tls_only_and_verifies_whom_it_connects_to(
    rendered: Callable[..., str],
) -> None:
    found = settings(rendered("flotilla.conf.j2"))
    assert (found["port"], found["tls-port"]) == ("0", "6379")
    assert (found["tls-replication"], found["tls-protocols"]) == ("yes", "TLSv1.3")
    assert found["tls-cert-file"] == found["tls-key-file"] == "/etc/flotilla/tls/leaf.pem"
    assert found["tls-ca-cert-file"] == "/etc/flotilla/tls/authority.pem"

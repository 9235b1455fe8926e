"""Who may be let in, what hosts are told, and what their logs say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import access as rules
from flotilla.rules.access import KRL_MAGIC, Grant, Login, Trust

CA = "ssh-ed25519 AAAA people@shop-blue"


def grant(serial: int = 1, name: str = "alice", ends: int = 1000) -> Grant:
    return Grant(serial, name, "ops", "SHA256:key", "ssh-ed25519", 0, ends, "bob@here:1")


def test_a_grant_is_read_back_as_it_was_written():
    assert Grant.from_dict(json.loads(json.dumps(grant().as_dict()))) == grant()


@pytest.mark.parametrize(
    ("name", "hours", "principal", "says"),
    [
        ("alice", 8, "ops", None),
        ("a.b-c_1", 168, "ops", None),
        ("Alice", 8, "ops", "is no name"),
        ("", 8, "ops", "is no name"),
        ("alice\n", 8, "ops", "is no name"),
        ("../etc", 8, "ops", "is no name"),
        ("alice", 0, "ops", "--hours"),
        ("alice", 169, "ops", "--hours"),
        ("alice", 10**400, "ops", "--hours"),
        ("alice", float("nan"), "ops", "--hours"),
        ("alice", 8, "root", "--principal"),
        ("alice", 8, "ops,root", "--principal"),
    ],
)
def test_who_may_be_let_in_and_for_how_long(name, hours, principal, says):
    found = rules.objection(name, hours, principal)
    assert found is None if says is None else says in found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ssh-ed25519 AAAA alice\n", None),
        ("# mine\n\nsk-ssh-ed25519@openssh.com AAAA alice\n", None),
        ("", "0 lines"),
        ("ssh-ed25519 AAAA\nssh-ed25519 BBBB\n", "2 lines"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA\n", "certificate already"),
        ("ssh-dss AAAA\n", "of type"),
        ('command="id" ssh-ed25519 AAAA\n', "of type"),
    ],
)
def test_what_is_one_public_key(text, says):
    found = rules.key_objection(text)
    assert found is None if says is None else says in found


@pytest.mark.parametrize(
    ("kind", "bits", "allowed"),
    [("ssh-rsa", 2047, False), ("ssh-rsa", 2048, True), ("ssh-ed25519", 256, True)],
)
def test_which_size_of_key_is_allowed(kind, bits, allowed):
    assert (rules.size_objection(kind, bits) is None) is allowed


def test_what_ended_or_was_revoked_is_not_revoked_again():
    known = [grant(1), grant(2, ends=10), grant(3), grant(4, name="bob")]
    assert rules.to_revoke(known, "alice", {3}, now=500) == [grant(1)]
    assert [rules.state(one, {3}, 500) for one in known] == ["valid", "expired", "revoked", "valid"]


@given(st.sets(st.integers(1, 50)), st.sets(st.integers(1, 50)), st.floats(0, 2000))
def test_what_was_revoked_is_never_valid_again(gone, more, now):
    for one in (grant(serial) for serial in range(1, 51)):
        if rules.state(one, gone, now) == "revoked":
            assert rules.state(one, gone | more, now) == "revoked"


def told(**changes: object) -> bytes:
    found = json.loads(rules.trust(CA, KRL_MAGIC + b"\0" * 36, 3, "admin"))
    return json.dumps(found | changes).encode()


def test_a_bastion_lets_nobody_in_but_to_jump():
    assert Trust.parse(told(), "bastion").principals == {"jump": ["ops"]}
    assert Trust.parse(told(), "mysql").principals == {"admin": ["ops"]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"revoked": ""}, "revoked"),
        ({"revoked": "AAAA"}, "revoked"),
        ({"user_ca": ""}, "names no CA"),
        ({"user_ca": "ssh-rsa AAAA"}, "names no CA"),
        ({"principals": {"": {"../../passwd": ["ops"]}}}, "is no account"),
        ({"generation": None}, "lacks"),
    ],
)
def test_a_document_that_could_lock_out_or_let_in_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        Trust.parse(told(**changes), "app")


@given(st.binary(max_size=200))
def test_what_is_no_document_is_refused_and_nothing_else_happens(body):
    with pytest.raises(ValueError):
        Trust.parse(body, "app")


def test_a_list_that_was_made_again_says_the_same():
    early, late = (
        rules.trust(CA, KRL_MAGIC + b"\0" * 12 + bytes([date]) * 8 + b"end", 3, "admin")
        for date in (1, 2)
    )
    assert rules.is_same(early, late)
    other = rules.trust(CA, KRL_MAGIC + b"\0" * 12 + b"\1" * 8 + b"END", 3, "admin")
    assert not rules.is_same(early, other)
    assert not rules.is_same(early, b"")


CERTIFIED = (
    "Accepted publickey for admin from 10.0.0.5 port 4711 ssh2: ED25519-CERT SHA256:key"
    " ID alice (serial 7) CA ED25519 SHA256:ca"
)
PLAIN = "Accepted publickey for admin from 10.0.0.5 port 4711 ssh2: ED25519 SHA256:key"


@pytest.mark.parametrize(
    ("begins", "launched", "since", "is_whole"),
    [
        (1000, 0, 2000, True),
        (2000, 0, 2000, True),
        (3000, 0, 2000, False),
        (3000, 2900, 2000, True),
        (3600, 2900, 2000, False),
        (None, 0, 2000, False),
    ],
)
def test_a_journal_tells_of_all_hours_or_is_told_of(begins, launched, since, is_whole):
    why = rules.journal_objection(begins, launched, since)
    assert (why is None) == is_whole


def test_what_a_stranger_calls_himself_is_no_login():
    """sshd writes the ID of a certificate that it refuses, whoever signed it."""
    line = f"Failed publickey for admin from 10.0.0.9 port 1 ssh2: ED25519-CERT SHA256:x ID {PLAIN}"
    assert rules.login(line) is None
    assert rules.is_refusal(line)


def test_logins_are_read_from_what_sshd_writes():
    assert rules.login(CERTIFIED) == Login("admin", "10.0.0.5", "SHA256:key", "alice", 7)
    assert rules.login(PLAIN) == Login("admin", "10.0.0.5", "SHA256:key")
    assert rules.login("Connection from 10.0.0.5 port 4711") is None


@pytest.mark.parametrize(
    "line",
    [
        CERTIFIED,
        PLAIN,
        f"{PLAIN} ID {'a' * 1000}"[:1023],
        "Accepted password for admin from 10.0.0.5 port 4711 ssh2",
        "Accepted keyboard-interactive/pam for admin from 10.0.0.5 port 4711 ssh2",
    ],
)
def test_no_login_goes_unnoticed(line):
    assert rules.is_login(line)


@pytest.mark.parametrize(
    "line",
    [
        "Accepted key ED25519 SHA256:key found at /home/admin/.ssh/authorized_keys:1",
        'Accepted certificate ID "alice" (serial 7) signed by ED25519 CA SHA256:ca via /etc/ca',
        "Connection from 10.0.0.5 port 4711",
    ],
)
def test_a_key_that_would_do_is_no_login_yet(line):
    assert not rules.is_login(line)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (Login("admin", "a", "k"), None),
        (Login("admin", "a", "SHA256:key", "alice", 1), None),
        (Login("admin", "a", "SHA256:thief", "alice", 1), "for the key SHA256:key, not for"),
        (Login("admin", "a", "k", "alice", 2), "was ever granted"),
        (Login("admin", "a", "k", "root", 1), "was granted to alice"),
    ],
)
def test_a_login_that_no_grant_explains_is_named(seen, says):
    found = rules.login_objection(seen, {1: grant(1)})
    assert found is None if says is None else says in found


def test_a_host_is_known_by_each_of_its_names_once():
    assert rules.host_names("app-1", "10.0.0.1", None, "", "app-1") == ["app-1", "10.0.0.1"]


def line(**told: object) -> str:
    return json.dumps(told)


PLAIN_REDIS = (
    "Error accepting a client connection: error:0A00010B:SSL routines::wrong version number"
    " (addr=10.77.3.1:48586 laddr=10.77.5.1:6379)"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            line(refused="credentials of the instance", chain="output", packets=3, since="x"),
            ("packets, output: credentials of the instance", 3),
        ),
        (
            line(refused="connection without TLS", account="shop", times=2, **{"from": "10.0.0.1"}),
            ("connection without TLS of shop from 10.0.0.1", 2),
        ),
        (
            line(refused="access denied", account="a\x1b[2J", times=1, **{"from": None}),
            ("access denied of a?[2J from ?", 1),
        ),
        (PLAIN_REDIS, ("connection without TLS from 10.77.3.1", 1)),
        ("/primary: yes", None),
        ("{not JSON", None),
        (line(refused="what no row opens"), None),
        (line(refused="x", chain="input", packets=None), None),
    ],
)
def test_what_units_besides_sshd_refused_is_read(text: str, told: tuple[str, int] | None):
    assert rules.refused(text) == told

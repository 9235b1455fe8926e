"""The accounts of a cluster: what they may do, and what may be seen of their passwords."""

from __future__ import annotations

import pytest
from fleets import maker

from flotilla.mysql.accounts import WATCHER, Secrets, accounts, make

PASSWORDS = {
    "root": "key",
    "guestbook": "app-pw",
    "replication": "rep-pw",
    "monitor": "mon-pw",
    "flotilla_watcher": "watch-pw",
}


@pytest.fixture
def made(tmp_path):
    settings = maker(tmp_path)().settings
    return lambda **changed: accounts(settings, Secrets(PASSWORDS | changed))


def text(account):
    return " ".join(s if isinstance(s, str) else s[0] for s in account.statements)


def test_no_statement_and_no_repr_holds_a_password(made):
    for account in made():
        assert not [pw for pw in PASSWORDS.values() if pw in text(account)]
        assert not [pw for pw in PASSWORDS.values() if pw in repr(account)]
    assert "app-pw" not in repr(Secrets(PASSWORDS))


def test_only_the_account_whose_password_changed_is_made_again(made):
    before = {a.name: a.digest("key") for a in made()}
    after = {a.name: a.digest("key") for a in made(monitor="new")}
    assert {name for name in before if before[name] != after[name]} == {"monitor"}


def test_a_digest_says_nothing_without_the_key(made):
    account = made()[0]
    assert account.digest("key") != account.digest("other")


def test_nobody_but_the_watcher_may_set_itself_above_read_only(made):
    everything = " ".join(text(account) for account in made() if account.name != WATCHER)
    for privilege in ("ALL", "SUPER", "CONNECTION_ADMIN", "GRANT OPTION", "SYSTEM_VARIABLES_ADMIN"):
        assert privilege not in everything.replace("FAMILY", "")


def test_the_watcher_moves_the_role_and_sees_no_data(made):
    (grants,) = [text(a) for a in made() if a.name == WATCHER]
    everywhere = grants.partition("GRANT ")[2].partition(" ON *.*")[0].split(", ")
    assert set(everywhere) == {
        "SERVICE_CONNECTION_ADMIN",
        "CONNECTION_ADMIN",
        "SYSTEM_VARIABLES_ADMIN",
        "REPLICATION_SLAVE_ADMIN",
        "REPLICATION CLIENT",
        "RELOAD",
    }
    assert "REQUIRE SSL" in grants
    assert {part.split(" TO ")[0] for part in grants.split(" ON ")[2:]} == {
        "performance_schema.*",
        "ops.term",
        "ops.report",
    }


def test_the_application_reaches_its_own_database_only(made):
    (grants,) = [text(a) for a in made() if a.name == "guestbook"]
    assert " ON `guestbook`.* TO" in grants
    assert "*.*" not in grants


def test_the_endpoint_sees_and_changes_nothing(made):
    (grants,) = [text(a) for a in made() if a.name == "flotilla_agent"]
    granted = {part.split(" ON ")[0] for part in grants.split("GRANT ")[1:]}
    assert granted == {"REPLICATION CLIENT", "SELECT"}
    assert "IDENTIFIED BY" not in grants


def test_an_account_is_remembered_after_it_is_made(made):
    account = made()[0]
    statements = list(make(account, Secrets(PASSWORDS)))
    assert statements[:-1] == list(account.statements)
    assert "ops.account" in statements[-1][0]

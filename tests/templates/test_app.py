"""The application's unit, environment and release settings as a host gets them."""

from __future__ import annotations

import configparser
import json
import shlex

from flotilla import config

SECRETS = {"DATABASE_PASSWORD": "p w", "CACHE_PASSWORD": 'a"b\\c', "SECRET_KEY": "$HOME#x"}


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # systemd's keys have capitals
    parser.read_string(text)
    return parser


def test_the_unit_runs_the_command_of_fleet_yml_in_the_current_release(render):
    service = unit(render("app", "app.service.j2", host="app-1"))["Service"]
    assert service["ExecStart"].endswith("gunicorn.conf.py guestbook.wsgi:app")
    assert service["WorkingDirectory"] == "/srv/app/current"
    assert service["User"] == "app"


def test_without_a_release_there_is_nothing_to_start(render):
    section = unit(render("app", "app.service.j2", host="app-1"))["Unit"]
    assert section["ConditionPathExists"] == "/srv/app/current"


def test_the_application_has_longer_to_stop_than_its_longest_grace(render):
    service = unit(render("app", "app.service.j2", host="app-1"))["Service"]
    assert int(service["TimeoutStopSec"]) > 30, "gunicorn's graceful_timeout is 30 s"


def test_the_unit_holds_no_secret_and_can_write_to_one_folder_only(render):
    text = render("app", "app.service.j2", host="app-1", app_secrets=SECRETS)
    assert not any(value in text for value in SECRETS.values())
    assert unit(text)["Service"]["ReadWritePaths"] == "/srv/app/shared"
    assert unit(text)["Service"]["NoNewPrivileges"] == "true"


def test_the_environment_leads_to_this_host_and_keeps_odd_characters(render):
    text = render("app", "environment.j2", host="app-1", app_secrets=SECRETS)
    pairs = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    assert {shlex.split(pairs[k])[0] for k in ("DATABASE_WRITER", "DATABASE_READER")} == {
        "mysql.flotilla.lab.internal:3306",
        "mysql.flotilla.lab.internal:3307",
    }
    assert pairs["DATABASE_CA"] == '"/etc/app/authority.pem"'
    assert pairs["PORT"] == "8000"
    # systemd reads a double-quoted value as a shell does, but expands nothing.
    assert shlex.split(pairs["DATABASE_PASSWORD"]) == ["p w"]
    assert shlex.split(pairs["CACHE_PASSWORD"]) == ['a"b\\c']
    assert shlex.split(pairs["SECRET_KEY"]) == ["$HOME#x"]


def test_settings_of_fleet_yml_win_over_our_own(render):
    text = render(
        "app",
        "environment.j2",
        host="app-1",
        app_secrets={},
        app_environment={"DATABASE_NAME": "other", "MODE": "quiet"},
    )
    assert 'DATABASE_NAME="other"' in text
    assert 'MODE="quiet"' in text


def test_the_release_tool_is_told_where_releases_are_and_how_to_ask(render):
    settings = json.loads(render("app", "release.json.j2", host="app-1"))
    assert settings["bucket"] == "flotilla-lab-artifacts"
    assert settings["boot_seconds"] == config.load("lab").application.boot_seconds
    assert (settings["ready_path"], settings["version_path"]) == ("/readyz", "/version")
    assert settings["migrate"].endswith("-m guestbook.migrate")

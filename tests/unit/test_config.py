"""fleet.yml: what is read, and what an operator is told when it cannot be."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flotilla import config, environment
from flotilla.errors import BadOption, Refused
from flotilla.settings import ROLES, Settings

ROOT = environment.root()
LAB = environment.fleet_file(ROOT, "lab")
EXAMPLE = environment.fleet_file(ROOT, "production.example")


def parsed(text: str, env: str = "lab") -> Settings:
    return config.parse(text.encode(), env=env, shown="inventory/lab/fleet.yml", root=ROOT)


def edited(path: str, value: Any) -> str:
    """The lab's file with one key (dotted, below fleet) set to ``value``."""
    tree = yaml.safe_load(LAB.read_text())
    *parents, last = path.split(".")
    place = tree["fleet"]
    for part in parents:
        place = place[part]
    place[last] = value
    return yaml.safe_dump(tree, sort_keys=False)


def refusal(text: str, env: str = "lab") -> str:
    with pytest.raises(Refused) as caught:
        parsed(text, env)
    assert caught.value.exit_code == 3
    assert "Nothing was changed" in caught.value.untouched
    return str(caught.value)


def test_the_lab_and_ansible_see_the_same_values():
    settings = config.load("lab")
    seen_by_ansible = yaml.safe_load(LAB.read_text())["fleet"]
    assert settings.model_dump(mode="json") == seen_by_ansible


def test_the_lab_has_the_twelve_hosts_of_the_design():
    tiers = config.load("lab").tiers
    assert {role: tier.count for role, tier in tiers.items()} == {
        "bastion": 1, "lb": 2, "app": 3, "mysql": 3, "redis": 3,
    }  # fmt: skip
    assert [role for role, _ in tiers.items()] == list(ROLES)


def test_the_example_is_valid_once_it_is_copied(tmp_path):
    shutil.copytree(
        ROOT / "inventory" / "production.example", tmp_path / "inventory" / "production"
    )
    settings = config.load("production", root=tmp_path)
    assert settings.prefix == "acme-production"
    seen_by_ansible = yaml.safe_load(EXAMPLE.read_text())["fleet"]
    assert [window["from"] for window in seen_by_ansible["deploy"]["windows"]["freeze"]] == [
        window.begin for window in settings.deploy.windows.freeze
    ]


def keys(model: type[BaseModel], path: str = "fleet") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        here = f"{path}.{name}"
        found.append(here)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += keys(kind, here)
    return found


def has(tree: Any, path: str) -> bool:
    for part in path.split("."):
        if not (isinstance(tree, dict) and part in tree):
            return False
        tree = tree[part]
    return True


def test_the_example_has_every_key_there_is():
    example = yaml.safe_load(EXAMPLE.read_text())
    assert [key for key in keys(Settings) if not has(example, key)] == []


def test_every_key_of_the_example_is_explained_right_above_it():
    lines = EXAMPLE.read_text().splitlines()
    bare = []
    for before, line in pairwise(lines):
        key = re.match(r" +([a-z_]+):", line)
        explained = before.strip().startswith("#") or "application.environment" in before
        if key and not explained:
            bare.append(line.strip())
    assert bare == []


def test_an_unknown_environment_lists_those_that_exist(monkeypatch):
    monkeypatch.setenv("FLOTILLA_ENV", "labb")
    with pytest.raises(BadOption) as caught:
        config.load()
    message = str(caught.value)
    assert "'labb'" in message
    assert "inventory/ has: lab" in message
    assert message.endswith("Next: FLOTILLA_ENV=lab fab --list")
    assert caught.value.exit_code == 5


def test_the_example_is_not_an_environment():
    assert "production.example" not in environment.names(ROOT)
    with pytest.raises(BadOption):
        config.load("production.example")


@pytest.mark.parametrize("variables", [{}, {"FLOTILLA_ENV": ""}])
def test_without_a_choice_the_environment_is_the_lab(variables):
    assert environment.current(variables) == "lab"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fleet: [", "line 1"),
        ("fleet:\n\t- tab", "line 2, column 1: not valid YAML"),
        ("", "must be one mapping with the key fleet"),
        ("- fleet", "must be one mapping with the key fleet; it holds list"),
        ("fleet: 3", "the key fleet must hold a mapping, not 3"),
        ("fleet: {}\nflet: {}", "line 2: 'flet' is not a key here"),
        ("fleet: {name: a,\n name: b}", "line 2: fleet.name is already set on line 1"),
        ("fleet: {}", "fleet.region is missing"),
        ("fleet: &a\n  x: *a", "fleet.x is not a key"),
        ("fleet: " + "[" * 3000 + "]" * 3000, "it is nested too deeply"),
        ("fleet: {}\n#" + "x" * 300_000, "bytes and may have 262144"),
    ],
)
def test_a_malformed_file_is_refused_with_the_place(text, said):
    assert said in refusal(text)


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path):
    (tmp_path / "inventory" / "lab" / environment.FLEET_FILE).mkdir(parents=True)
    with pytest.raises(Refused, match=r"fleet.yml: it cannot be read: Is a directory"):
        config.load("lab", root=tmp_path)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(Refused, match="not valid YAML"):
        config.parse(b"fleet: \xff\x00", env="lab", shown="f.yml", root=ROOT)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("name", "Fleet One", "fleet.name is 'Fleet One': it must be lower case letters"),
        ("env", "production", "fleet.env is 'production' but the file is in inventory/lab/"),
        ("region", "Frankfurt", "fleet.region is 'Frankfurt': it must be an AWS region such as"),
        ("zones", [], "fleet.zones"),
        ("zones", ["eu-central-1a"] * 3, "names eu-central-1a 3 times"),
        ("zones", ["eu-central-1a", "eu-central-1b"], "fleet.zones has 2: name at least 3"),
        (
            "zones",
            ["eu-central-1a", "eu-central-1b", "eu-west-1c"],
            "'eu-west-1c', which is not a zone of fleet.region eu-central-1",
        ),
        ("vpc_cidr", "10.0.0.0/33", "fleet.vpc_cidr is '10.0.0.0/33'"),
        ("vpc_cidr", "10.0.0.1/16", "fleet.vpc_cidr is '10.0.0.1/16'"),
        ("vpc_cidr", "8.8.0.0/16", "it must lie in 10.0.0.0/8"),
        ("vpc_cidr", "10.0.0.0/8", "it must be between /16 and /24"),
        ("tiers.app.count", 0, "fleet.tiers.app.count is 0: it must be greater than or equal to 1"),
        ("tiers.app.count", "3", "fleet.tiers.app.count is '3': it must be a valid integer"),
        ("tiers.app.count", True, "fleet.tiers.app.count is True: it must be a valid integer"),
        ("tiers.app.type", "t3", "is 't3': it must be an EC2 instance type such as t3.medium"),
        ("tiers.app.typ", "t3.small", "is not a key; here: count, disk_gb, type. Did you mean typ"),
        ("tiers.web", {}, "fleet.tiers.web is not a key; here: app, bastion, lb, mysql, redis"),
        ("tiers.lb.count", 3, "fleet.tiers.lb.count is 3: it must be 2"),
        ("tiers.mysql.count", 2, "fleet.tiers.mysql.count is 2: it must be 3 or more"),
        ("tiers.redis.count", 1, "fleet.tiers.redis.count is 1: it must be 3 or more"),
        ("tiers.redis.count", 4, "fleet.tiers.redis.count is 4: it must be odd"),
        ("tiers.bastion.count", 4, "one a zone is the most (3)"),
        ("application.port", 80, "fleet.application.port is 80"),
        ("application.port", 3306, "port 3306 is MySQL writer's"),
        ("application.health_path", "healthz", "it must be the path of a URL, beginning with /"),
        ("application.ready_path", "/healthz", "the same as health_path"),
        ("application.environment", {"lower": "x"}, "the name of a variable, in upper case"),
        ("application.environment", {"WORKERS": 3}, "it must be a valid string"),
        ("application.migrate", "one\ntwo", "it must be one line of text"),
        ("images.source.owner", 136693071363, "images.source.owner is 136693071363"),
        ("images.packer.ssh_interface", "vpn", "'public_ip' or 'private_ip'"),
        ("redis.maxmemory_policy", "lru", "'noeviction'"),
        ("cloudwatch.log_retention_days", 8, "fleet.cloudwatch.log_retention_days is 8"),
        ("ssh.allow_from", ["anywhere"], "fleet.ssh.allow_from[0] is 'anywhere'"),
        ("aws.endpoint_url", "127.0.0.1:4566", "an http:// or https:// address, or null"),
        ("deploy.batches", ["2", "50%"], 'the first batch must be "1", the canary'),
        ("deploy.batches", ["1", "150%"], "a number of hosts or a share"),
        ("deploy.batches", [1], "fleet.deploy.batches[0] is 1"),
        ("deploy.floor_percent", 100, "less than or equal to 99"),
        ("deploy.canary_weight_percent", [50, 10, 100], "must grow and end with 100"),
        ("deploy.canary_weight_percent", [10, 50], "must grow and end with 100"),
        ("deploy.on_failure", "revert", "'rollback' or 'stop'"),
        ("deploy.windows.timezone", "Berlin", "a time zone such as Europe/Berlin"),
        (
            "deploy.windows.freeze",
            [{"days": ["fri"], "from": 960, "to": "17:00", "reason": "x"}],
            "freeze[0].from is 960: put it in quotes",
        ),
        (
            "deploy.windows.freeze",
            [{"from": "16:00", "to": "17:00", "reason": "x"}],
            "without them, both are a day and a time",
        ),
        (
            "deploy.windows.freeze",
            [{"from": "2026-12-24 12:00", "to": "2026-12-23 12:00", "reason": "x"}],
            "it must end after it begins",
        ),
        ("deploy.hooks.before", ["make check"], "fleet.deploy.hooks.before[0] is 'make check'"),
        ("deploy.notify.sns_topic", "deploys", "the ARN of an SNS topic"),
        ("zones", ["eu-central-1a", "eu-central-1b", "eu-central-1é"], "the region and one letter"),
        ("zones", "eu-central-1a", "fleet.zones is 'eu-central-1a': it must be a list"),
        ("zones", [], "it must have at least 1 entry"),
        ("name", "a" * 100_000, "aaa... (100002 characters): it must have at most 24"),
        ("vpc_cidr", "10.77.0.0/255.255.0.0", "write it as 10.77.0.0/16"),
        ("ssh.allow_from", ["192.0.2.7"], "write it as 192.0.2.7/32"),
        ("lb.allow_from", ["192.0.2.0/24"] * 2, "192.0.2.0/24 is named twice"),
        (
            "lb.acme",
            {"directory": "https://ca.example/dir", "email": "ops@shop.example", "ca_pem": None},
            "it must be /flotilla/lab/lb/certificate",
        ),
        ("lb.acme", {"directory": "http://ca.example"}, "the authority's directory: https://"),
        ("lb.acme", {"email": "ops"}, "fleet.lb.acme.email is 'ops': it must be an e-mail"),
        ("lb.acme", {"ca_pem": "root.pem"}, "it must be certificates as PEM text, or null"),
        ("lb.acme", {"staging": True}, "fleet.lb.acme.staging is not a key"),
        ("lb.acme", {"email": "a@b.example"}, "fleet.lb.acme.directory is missing"),
        ("ssh.key_file", "keys/a\0b", "it must be a path on this machine"),
        ("ssh.key_file", "~nobody-of-that-name/key", "it must be a path on this machine"),
        ("ssh.key_file", 'my "key"', "it must be a path on this machine"),
        ("aws.endpoint_url", "http://127.0.0.1:99999", "a port of 1 to 65535"),
        ("aws.endpoint_url", "http://[::1", "it must be an address with a host"),
        ("aws.endpoint_url", "http://:4566", "it must be an address with a host"),
        ("inventory.other_regions", ["eu-central-1"], "names eu-central-1 again"),
        ("application.artifact", "a.tgz", "fleet.application.artifact is 'a.tgz' and build is"),
        ("application.build", "make '{output}", "no shell reads this: no closing quotation"),
        ("application.start", "bin/shop 'x", "no shell reads this: no closing quotation"),
        ("application.version_path", "/readyz", "its answer is the release that runs"),
        ("application.health_path", '/a"b', "it must be the path of a URL"),
        ("application.static_dir", "../secrets", "it must be a folder inside the release"),
        ("application.static_dir", "/etc", "it must be a folder inside the release"),
        ("application.environment", {"SECRET_KEY": "x"}, "SECRET_KEY is set by Flotilla"),
        ("mysql.user", "root", "fleet.mysql.user is 'root', which MySQL or Flotilla itself uses"),
        ("mysql.database", "mysql", "fleet.mysql.database is 'mysql', which MySQL or Flotilla"),
        ("mysql.apt.packages", ["-o x"], "it must be one word, as apt knows it"),
        ("inventory.fresh_seconds", 3600, "must not exceed fleet.inventory.max_age_seconds (300)"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_what_is_allowed(path, value, said):
    message = refusal(edited(path, value))
    assert said in message
    assert "fleet." in message
    assert "line " in message
    assert "Next: correct inventory/lab/fleet.yml" in message


def test_all_faults_are_told_at_once():
    text = edited("tiers.mysql.count", "three").replace("t3.micro", "huge")
    message = refusal(text)
    assert "has 2 faults" in message
    assert "fleet.tiers.mysql.count is 'three'" in message
    assert "fleet.tiers.bastion.type is 'huge'" in message


def test_the_line_is_the_one_to_edit():
    lines = LAB.read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.strip().startswith("redis: {count"))
    text = LAB.read_text().replace("redis: {count: 3", "redis: {count: 4")
    assert f"line {number}: fleet.tiers.redis.count is 4" in refusal(text)


def test_a_network_too_small_for_the_tiers_is_refused():
    text = edited("vpc_cidr", "10.0.0.0/24").replace("count: 3", "count: 33")
    assert "has 27 addresses and the tiers need 46 in each of 3 zones" in refusal(text)


@given(count=st.integers(1, 12), role=st.sampled_from(["mysql", "redis"]))
def test_a_tier_that_votes_keeps_a_majority_when_one_host_dies(count, role):
    text = edited(f"tiers.{role}.count", count)
    if count >= 3 and (role == "mysql" or count % 2):
        assert getattr(parsed(text).tiers, role).count - 1 >= count // 2 + 1
    else:
        assert f"fleet.tiers.{role}.count is {count}" in refusal(text)


@given(st.binary(max_size=200))
def test_no_file_whatever_ends_in_a_traceback(content):
    with pytest.raises(Refused):
        config.parse(content, env="lab", shown="f.yml", root=ROOT)


def test_settings_cannot_be_changed():
    settings = config.load("lab")
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "other"  # type: ignore[misc]


def test_paths_start_at_the_repository_and_tilde_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ops")
    settings = config.load("lab")
    assert settings.path("var/x") == ROOT / "var" / "x"
    assert settings.path("~/.ssh/id") == Path("/home/ops/.ssh/id")


def test_names_of_aws_things_begin_with_fleet_and_environment():
    settings = config.load("lab")
    assert settings.name_of("locks") == "flotilla-lab-locks"
    assert settings.parameter("mysql", "app_password") == "/flotilla/lab/mysql/app_password"


def test_a_changed_file_has_another_digest():
    text = LAB.read_text()
    assert parsed(text).digest != parsed(text + "# a comment\n").digest

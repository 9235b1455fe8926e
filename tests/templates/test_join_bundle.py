"""What a new application host is given is what the playbook would have put there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FLEET, GROUPS, REPOSITORY

from flotilla.rules import join as rules

ROLES = REPOSITORY / "roles"
SECRETS = {
    "redis/app_password": 'a"b\\c',
    "mysql/app_password": "p w",
    "app/secret_key": "%%x%%",
    "app/tls_issuer": "-----BEGIN\nkey\n-----END\n",
}
PUBLIC = {"authority/certificate": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"}


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tool = load("join_tool", ROLES / "join/files/join.py")


def parsed(path: str) -> Any:
    return yaml.safe_load((ROLES / path).read_text())


FILES = parsed("join/vars/main.yml")["__join_files"]


def inventory() -> dict[str, Any]:
    """Twelve hosts, with what the play "Secrets" leaves behind on localhost."""
    hosts = {name: dict(values) for name, values in FLEET.items()}
    return {
        "all": {
            "hosts": {name: {"ansible_host": host["ansible_host"]} for name, host in hosts.items()},
            "children": {
                role: {"hosts": dict.fromkeys(names)}
                for role, names in GROUPS.items()
                if role != "all"
            },
        }
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By host the files as Ansible renders them there, and "bundle": as they are published."""
    folder = tmp_path_factory.mktemp("join")
    task = parsed("join/tasks/publish.yml")[0]
    contents = task["flotilla_bundle"]["contents"]
    plain = contents.replace(", template_vars=__join_values", "")
    site = yaml.safe_load((REPOSITORY / "playbooks/site.yml").read_text())
    own = next(one["roles"] for one in site if one["name"] == "Application hosts")
    plays = [
        {
            "hosts": "app",
            "gather_facts": False,
            "roles": [{"role": role["role"], "when": False} for role in roles],
            "tasks": [
                {
                    "name": "Render",
                    "ansible.builtin.copy": {
                        "content": "{{ __contents | to_json }}",
                        "dest": f"{folder}/{{{{ inventory_hostname }}}}.{kind}.json",
                    },
                    "delegate_to": "localhost",
                    "vars": task["vars"] | {"__contents": text},
                }
            ],
        }
        # Published from the play of the application hosts, in which role base is not.
        for kind, roles, text in (
            ("bundle", own, contents),
            ("host", [{"role": "base"}, *own], plain),
        )
    ]
    secrets = {"__site_secrets": {"values": SECRETS | PUBLIC}}
    local: dict[str, dict[str, Any]] = {"localhost": {"ansible_connection": "local"} | secrets}
    local["localhost"]["ansible_python_interpreter"] = sys.executable
    listing = inventory()
    listing["ungrouped"] = {"hosts": local}
    (folder / "hosts.yml").write_text(yaml.safe_dump(listing))
    playbook = REPOSITORY / "playbooks" / f".test_join_{os.getpid()}.yml"
    playbook.write_text(yaml.safe_dump(plays, width=1000))
    fleet = REPOSITORY / "inventory/lab/group_vars/all/fleet.yml"
    try:
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("ansible-playbook"), "-i", folder / "hosts.yml"),
                *("-e", f"@{fleet}", playbook),
            ],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        playbook.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        kind: [json.loads((folder / f"{name}.{kind}.json").read_text()) for name in GROUPS["app"]]
        for kind in ("bundle", "host")
    }
    one, *others = found["bundle"]
    assert all(other == one for other in others), "it does not depend on who renders"
    return dict(zip(GROUPS["app"], found["host"], strict=True)) | {"bundle": one}


@pytest.fixture(scope="module")
def bundle(rendered: dict[str, list[str]]) -> dict[str, Any]:
    return rules.bundle(
        FILES,
        rendered["bundle"],
        vpc_id="vpc-1",
        parameters=dict.fromkeys(SECRETS, "/f/e/x/y"),
        enable=[],
        start=[],
    )


@pytest.mark.parametrize("host", ["app-1", "app-3"])
def test_a_host_that_joins_gets_what_the_playbook_would_write(rendered, bundle, host: str) -> None:
    values = {"name": host, "address": FLEET[host]["ansible_host"], **SECRETS}
    for file, text in zip(bundle["files"], rendered[host], strict=True):
        filled = tool.filled(file["content"], values, quoted=file["quoted"])
        assert filled == text, file["path"]


def test_what_is_published_holds_no_secret(rendered, bundle) -> None:
    assert any(secret in "".join(rendered["app-1"]) for secret in ("p w",)), "the host has them"
    body = rules.body(bundle).decode()
    assert not [secret for secret in SECRETS.values() if json.dumps(secret)[1:-1] in body]


def templates_of(role: str) -> set[str]:
    """What a role's configure.yml renders on an application host."""
    variables = parsed(f"{role}/vars/main.yml") if (ROLES / role / "vars/main.yml").exists() else {}
    found: set[str] = set()
    asked: dict[str, str] = {}
    for task in parsed(f"{role}/tasks/configure.yml"):
        if "flotilla_differing" in task:
            asked[f"{task['register']}.templates"] = task["flotilla_differing"]["templates"]
        source = task.get("ansible.builtin.template", {}).get("src", "")
        if source.endswith(".j2"):
            found.add(source)
        elif source:
            loop = task["loop"].strip("{} ")
            listed = variables[asked.get(loop, loop).strip("{} ")]
            found |= {one["src"] for one in listed}
    return found


@pytest.mark.parametrize("role", ["base", "firewall", "tls", "nginx", "app", "haproxy"])
def test_every_file_that_the_role_renders_when_it_configures_a_host_is_published(role: str) -> None:
    assert {file["src"] for file in FILES if file["role"] == role} == templates_of(role)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file["path"])
def test_owner_and_mode_are_those_of_the_role(file: dict[str, Any]) -> None:
    text = (ROLES / file["role"] / "tasks/configure.yml").read_text()
    assert f'mode: "{file.get("mode", "0644")}"' in text
    assert f"group: {file.get('group', 'root')}" in text


def test_the_unit_waits_for_no_target_and_tries_again(render) -> None:
    unit = render("join", "join.service.j2", host="app-1", join_parameters=[])
    assert "Type=exec" in unit, "a oneshot would hold up multi-user.target and the host's SSH keys"
    assert "Restart=on-failure" in unit


def test_redis_has_to_prove_its_name_through_the_proxy_of_the_host(rendered) -> None:
    """Any library checks the name it connects to, and on this host that is HAProxy."""
    name = "redis.flotilla.lab.internal"
    files = dict(zip((file["path"] for file in FILES), rendered["app-1"], strict=True))
    assert f"127.0.0.1 localhost mysql.flotilla.lab.internal {name}\n" in files["/etc/hosts"]
    assert f'CACHE_ADDRESS="{name}:6379"' in files["/etc/app/environment"]
    assert 'CACHE_CA="/etc/app/authority.pem"' in files["/etc/app/environment"]
    assert files["/etc/app/authority.pem"] == PUBLIC["authority/certificate"]

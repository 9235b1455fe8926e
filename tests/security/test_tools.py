"""No secret in the repository, no known flaw in its Python, its nginx or its rights at AWS."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from templates.conftest import render_template

from flotilla.provision.world import data
from flotilla.rules import policies

ROOT = Path(__file__).resolve().parents[2]
CODE = ("scripts", "roles", "playbooks", "inventory", "fabfile", "lab", "examples")
POLICIES = sorted((ROOT / "scripts/flotilla/data/policies").glob("*.json"))
VALUES = {"partition": "aws", "region": "eu-central-1", "account": "123456789012"}
# Keys of every request, which AWS's tables do not repeat for each action.
GLOBAL_KEYS = "aws:"


@pytest.mark.timeout(900)  # 30 s on a quiet machine; entropy of every word is slow on a busy one
def test_no_secret_is_in_the_repository(tool, judge):
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    # Hashes of packages are what these consist of.
    named = [f for f in files if f and not re.match(r"requirements/.*(\.txt|lock\.json)$", f)]
    said = json.loads(
        tool("detect-secrets-hook", "--no-verify", "--json", *named) or '{"results": {}}'
    )
    judge(
        "detect-secrets",
        (
            (file, one["type"], one["hashed_secret"][:12])
            for file, found in said["results"].items()
            for one in found
        ),
    )


def test_bandit_finds_nothing_of_weight(tool, judge):
    """Medium and high. What is low, ruff's own S rules judge line by line."""
    said = json.loads(
        tool("bandit", "-q", "-r", *CODE, "-ll", "-f", "json", "--exclude", "*/var/*")
    )
    assert not said["errors"]
    judge("bandit", ((one["filename"], one["test_id"], "") for one in said["results"]))


def test_gixy_finds_no_flaw_in_nginx(tool, judge, tmp_path: Path):
    found = []
    for host, more in (
        ("app-1", {}),
        ("app-2", {"nginx_static_dir": "", "nginx_application_keepalive_connections": 8}),
    ):
        file = tmp_path / f"{host}.conf"
        text = render_template("nginx", "nginx.conf.j2", host=host, **more)
        # A file of the package that only names content types.
        file.write_text(text.replace("include /etc/nginx/mime.types;", ""))
        found += json.loads(tool("gixy", "--format", "json", str(file)))
    judge("gixy", {("roles/nginx", one["plugin"], "") for one in found})


def statements(path: Path) -> list[dict[str, Any]]:
    names = set(policies.PLACEHOLDER.findall(path.read_text()))
    values = {name: VALUES.get(name, name) for name in names}
    rendered = policies.render(data(f"policies/{path.name}"), values)
    return list(rendered["Statement"])


def listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def known_to_aws(action: str) -> list[dict[str, Any]]:
    """AWS's own table of an action: a row for each kind of resource it takes."""
    from policy_sentry.querying.actions import get_action_data

    service, name = action.split(":")
    found = get_action_data(service, name) or {}
    return list(found.get(service, ()))


def keys(statement: dict[str, Any]) -> Iterator[str]:
    for conditions in statement.get("Condition", {}).values():
        yield from conditions


@cache
def overlap(one: str, other: str) -> bool:
    """Whether some text is matched by both patterns, in which only ``*`` is special."""
    if not one or not other:
        return not (one + other).strip("*")
    if one[0] == "*":
        return overlap(one[1:], other) or overlap(one, other[1:])
    if other[0] == "*":
        return overlap(other, one)
    return one[0] == other[0] and overlap(one[1:], other[1:])


def takes(rows: list[dict[str, Any]], arn: str) -> bool:
    """Whether an action takes a resource of ours, by AWS's forms of ARNs."""
    formats = {re.sub(r"\$\{[A-Za-z]+\}", "*", row["resource_arn_format"]) for row in rows}
    if arn == "*":
        return formats == {"*"}
    return any(form != "*" and overlap(form, arn) for form in formats)


def flaws(statement: dict[str, Any]) -> Iterator[str]:
    """What AWS would take without a word and not do, or do to more than it says."""
    arns = listed(statement.get("Resource"))
    known = {action: known_to_aws(action) for action in listed(statement["Action"])}
    for action, rows in known.items():
        if not rows:
            yield f"{action}: AWS has no such action"
        elif arns and not any(takes(rows, arn) for arn in arns):
            yield f"{action}: does nothing on {arns}, or could be limited"
        named = {re.sub(r"[$<].*", "", key) for row in rows for key in row["condition_keys"]}
        # A key that names a tag or an entry of an encryption context ends as its caller likes.
        begins = tuple(name for name in named if name.endswith(("/", ":")))
        for key in keys(statement):
            if key not in named and not key.startswith((*begins, GLOBAL_KEYS)):
                yield f"{action}: is never asked about {key}"
    for arn in arns:
        if not any(takes(rows, arn) for rows in known.values()):
            yield f"{arn}: no action of the statement takes it"


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_every_right_is_one_that_aws_knows_on_a_resource_that_it_takes(
    path: Path, scores: dict[str, str]
):
    found = statements(path)
    before = int(scores.get("policies", "0").split()[0])
    rights = before + sum(len(listed(one["Action"])) for one in found)
    scores["policies"] = f"{rights} rights of hosts compared with AWS's own tables"
    assert [flaw for statement in found for flaw in flaws(statement)] == []


def test_the_tools_see_what_they_should(tool, tmp_path: Path):
    """A gate is worth what it stops."""
    file = tmp_path / "bad.py"
    file.write_text("import subprocess\nsubprocess.call(input(), shell=True)\n")
    assert "B602" in tool("bandit", "-q", "-ll", "-f", "json", str(file))
    key = tmp_path / "key"
    key.write_text("-----BEGIN " + "RSA PRIVATE KEY-----\n")
    assert json.loads(tool("detect-secrets-hook", "--no-verify", "--json", str(key)))["results"]
    conf = tmp_path / "nginx.conf"
    conf.write_text("http { server { location /a { alias /srv/a/; } } }\n")
    assert json.loads(tool("gixy", "--format", "json", str(conf)))
    assert not known_to_aws("s3:ReadEverything")
    for statement in (
        {"Action": "s3:ReadEverything", "Resource": "arn:aws:s3:::b/*"},
        {"Action": "s3:GetObject", "Resource": "arn:aws:s3:::b"},
        {"Action": "s3:GetObject", "Resource": "*"},
    ):
        assert list(flaws(statement)), statement

"""The CloudWatch agent's configuration of every role, against its schema and against real names."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from conftest import FLEET, REPOSITORY

from flotilla.rules import cloudwatch

ROLES = ("bastion", "lb", "app", "mysql", "redis")
# AWS's file is not ours to copy: it is read where somebody put it.
SCHEMA = REPOSITORY.parent / "shared" / "data" / "cloudwatch-agent-schema.json"


@pytest.fixture(params=ROLES)
def config(render, request):
    return json.loads(render("cloudwatch_agent", "agent.json.j2", host=f"{request.param}-1"))


def test_the_agents_own_schema_accepts_it(config):
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA.name} of amazon-cloudwatch-agent is not at {SCHEMA.parent}")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft4Validator.check_schema(schema)
    errors = jsonschema.Draft4Validator(schema).iter_errors(config)
    assert [f"{list(error.path)}: {error.message}" for error in errors] == []


def test_nothing_in_it_is_without_effect(config):
    assert cloudwatch.faults(config) == []


@pytest.mark.parametrize("role", ROLES)
def test_each_role_watches_its_own_services_and_keeps_their_journal(render, role):
    config = json.loads(render("cloudwatch_agent", "agent.json.j2", host=f"{role}-1"))
    procstat = config["metrics"]["metrics_collected"]["procstat"]
    watched = {one.get("exe") or one["pattern"] for one in procstat}
    services = {"bastion": "sshd", "lb": "haproxy", "app": "nginx", "mysql": "mysqld"}
    assert services.get(role, "redis-server") in watched
    (journal,) = config["logs"]["logs_collected"]["journald"]["collect_list"]
    assert journal["log_group_name"] == f"/flotilla/lab/{role}"
    assert "ssh.service" in journal["units"]


def test_the_api_of_the_instances_is_named_only_where_it_is_not_amazons(render):
    own = json.loads(render("cloudwatch_agent", "agent.json.j2", host="lb-1"))
    assert own["metrics"]["endpoint_override"] == own["logs"]["endpoint_override"]
    amazons = json.loads(
        render("cloudwatch_agent", "agent.json.j2", host="lb-1", cloudwatch_agent_endpoint_url="")
    )
    assert "endpoint_override" not in amazons["metrics"] | amazons["logs"]


def test_every_host_of_the_fleet_has_one_role_to_watch(render):
    for host in FLEET:
        assert json.loads(render("cloudwatch_agent", "agent.json.j2", host=host))


def units_of(role: str) -> set[str]:
    """Units that a role's tasks and variables name."""
    folder = Path(REPOSITORY) / "roles" / role
    text = "".join(path.read_text() for path in folder.glob("[tv]a[sr]*s/*.yml"))
    words = (word.strip("[]{},\"' ") for word in text.split())
    return {word.rpartition("/")[2] for word in words if word.endswith(".service")}


@pytest.mark.parametrize(
    ("tier", "roles"),
    [("lb", ["haproxy", "keepalived"]), ("app", ["app", "nginx", "haproxy"]), ("redis", ["redis"])],
)
def test_the_journal_of_what_the_roles_start_is_collected(render, tier, roles):
    config = json.loads(render("cloudwatch_agent", "agent.json.j2", host=f"{tier}-1"))
    (journal,) = config["logs"]["logs_collected"]["journald"]["collect_list"]
    started = {unit for role in (*roles, "firewall") for unit in units_of(role)}
    assert {u for u in journal["units"] if u != "ssh.service"} <= started

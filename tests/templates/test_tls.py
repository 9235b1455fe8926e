"""What a host is told of its own certificate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

ROLE = REPOSITORY / "roles" / "tls"
sys.path.insert(0, str(ROLE / "files"))

import tls_leaf  # noqa: E402  the role's own file

Render = Callable[..., str]


def timer(render: Render) -> dict[str, str]:
    text = render("tls", "flotilla-tls.timer.j2", host="redis-1")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_two_hosts_rarely_renew_at_once_and_an_hour_is_short_for_what_is_left(
    render: Render,
) -> None:
    hours = yaml.safe_load((ROLE / "defaults/main.yml").read_text())["tls_leaf_hours"]
    found = timer(render)
    assert (found["OnUnitInactiveSec"], found["RandomizedDelaySec"]) == ("1h", "20min")
    assert hours * tls_leaf.RENEW_AT > 48, "a weekend"


def test_the_service_runs_what_the_role_copies(render: Render) -> None:
    text = render("tls", "flotilla-tls.service.j2", host="redis-1")
    assert "ExecStart=/usr/local/lib/flotilla/tls_leaf.py renew\n" in text


@pytest.mark.parametrize("unit", ["redis-server.conf.j2", "redis-sentinel.conf.j2"])
def test_a_service_that_starts_has_a_certificate_that_is_valid(render: Render, unit: str) -> None:
    """A host that was off for a week has none, and its timer runs later than Redis starts."""
    lines = render("redis", unit, host="redis-1").splitlines()
    made, chosen = (
        next(n for n, line in enumerate(lines) if part in line)
        for part in ("tls_leaf.py issue", "redis_node.py start")
    )
    assert made < chosen
    assert lines[made].startswith("ExecStartPre=-+"), "an old one may still do"


def spec(path: Path) -> Any:
    return yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]


def test_the_issuer_is_never_shown() -> None:
    assert spec(ROLE / "meta/argument_specs.yml")["tls_issuer"]["no_log"] is True
    tasks = yaml.safe_load((ROLE / "tasks/configure.yml").read_text())
    task = next(one for one in tasks if "issuer.pem" in str(one))
    assert task["no_log"] is True
    assert task["ansible.builtin.template"]["mode"] == "0600"

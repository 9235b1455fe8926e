"""The tables of variables in roles' manuals, and what they refuse to be made from."""

from __future__ import annotations

import pytest
import yaml

import role_docs
from flotilla.provision.world import data

SPEC = {
    "size_mb": {"type": "int", "description": "Memory for data."},
    "password": {"type": "str", "required": True, "description": "What it logs in with."},
    "hosts": {"type": "dict", "description": "Name to address. Default, group redis."},
}
DEFAULTS = {"size_mb": "{{ fleet.redis.maxmemory_mb }}", "hosts": "{{ groups['redis'] }}"}


def test_a_table_says_where_a_default_comes_from() -> None:
    assert role_docs.table(SPEC, DEFAULTS)[2:] == [
        "| `size_mb` | `fleet.redis.maxmemory_mb` | Memory for data |",
        "| `password` | required | What it logs in with |",
        "| `hosts` | group redis | Name to address |",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "`3`"),
        (True, "`true`"),
        ("", "empty"),
        ([], "`[]`"),
        ("{{ fleet.mysql.apt.uri | default('', true) }}", "`fleet.mysql.apt.uri`"),
        ("{{ fleet.name }}-{{ fleet.env }}-edge", "`<fleet>-<env>-edge`"),
        ("{{ a | b }}", "computed"),
        (["a long list"] * 9, "see defaults"),
    ],
)
def test_a_default_is_shown_as_people_would_write_it(value: object, words: str) -> None:
    assert role_docs.shown(value, "") == words


def test_specification_and_defaults_that_disagree_are_named() -> None:
    spec = {"a": {"description": "A", "default": 1}, "b": {"description": "B"}, "c": {}}
    found = list(role_docs.faults("redis", spec, {"a": 2, "c": 0, "d": 0}))
    assert [fault.split()[1] for fault in found] == ["a", "b", "c", "d"]


def test_the_text_around_a_table_stays() -> None:
    readme = f"before\n{role_docs.BEGIN}\nold\n{role_docs.END}\nafter\n"
    made = role_docs.with_table(readme, ["new"])
    assert made == f"before\n{role_docs.BEGIN}\nnew\n{role_docs.END}\nafter\n"
    with pytest.raises(ValueError, match="argument_specs"):
        role_docs.with_table("no table here", ["new"])


def test_every_secret_that_a_role_takes_is_marked_as_one() -> None:
    secrets = {f"{role}_{name}" for role, names in data("secrets.yml").items() for name in names}
    secrets |= {"redis_also_accepted", "app_secrets"}
    logged, kept = set(), set()
    for specs in (role_docs.ROOT / "roles").glob("*/meta/argument_specs.yml"):
        found = role_docs.options(yaml.safe_load(specs.read_text())["argument_specs"])
        for name in secrets & set(found):
            (kept if found[name].get("no_log") else logged).add(name)
    assert logged == set()
    assert kept >= {"redis_app_password", "redis_also_accepted", "app_secrets"}

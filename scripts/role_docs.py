#!/usr/bin/env python3
"""Write the variables table of every role's README from its meta/argument_specs.yml and defaults.

With --check nothing is written: exit 1 names the READMEs that differ, and the options that lack a
default or a description. Exit 0 all is as it should be, 5 bad option.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla.options import Parser

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- from meta/argument_specs.yml by scripts/role_docs.py -->"
END = "<!-- end of the table -->"
# A default that only repeats a key of fleet.yml is shown as that key.
_FLEET_KEY = re.compile(r"^\{\{\s*(fleet\.[a-z_.]+)(?:\s*\|\s*default\('', true\))?\s*\}\}$")
_WORDS = {
    "{{ fleet.name }}": "<fleet>",
    "{{ fleet.env }}": "<env>",
    "{{ cloudwatch_agent_tier }}": "<role>",
    "{{ inventory_hostname }}": "inventory_hostname",
}
_WIDEST = 40

Spec = Mapping[str, Any]


def options(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Every option of a role, from all entry points, in the order they stand in."""
    found: dict[str, Spec] = {}
    for entry in specs.values():
        for name, option in (entry.get("options") or {}).items():
            found.setdefault(name, option)
    return found


def table(found: Mapping[str, Spec], defaults: Mapping[str, Any]) -> list[str]:
    """The table's lines. A description's last sentence, "Default, ...", is the middle column."""
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for name, option in found.items():
        text, _, computed = str(option["description"]).rstrip(".").partition(". Default, ")
        default = "required" if option.get("required") else shown(defaults[name], computed)
        lines.append(f"| `{name}` | {default} | {text} |")
    return lines


def shown(value: object, computed: str) -> str:
    """A default as the table says it; ``computed`` are words for one that is an expression."""
    if isinstance(value, str):
        value = _FLEET_KEY.sub(r"\1", value)
        for expression, word in _WORDS.items():
            value = value.replace(expression, word)
        if not value:
            return "empty"
        if "{{" in value:
            return computed or "computed"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if len(text) <= _WIDEST else "see defaults"


def faults(role: str, found: Mapping[str, Spec], defaults: Mapping[str, Any]) -> Iterator[str]:
    """What specification and defaults do not agree on."""
    for name, option in found.items():
        if not option.get("description"):
            yield f"{role}: {name} has no description"
        if option.get("required"):
            if name in defaults:
                yield f"{role}: {name} is required and has a default"
        elif name not in defaults:
            yield f"{role}: {name} is not required and has no default"
        elif "default" in option and option["default"] != defaults[name]:
            yield f"{role}: {name} is {option['default']!r} in meta, {defaults[name]!r} in defaults"
    for name in sorted(set(defaults) - set(found)):
        yield f"{role}: {name} has a default and is in no argument specification"


def with_table(readme: str, lines: list[str]) -> str:
    """The README with its table made anew. Raises ValueError when the two markers are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"it needs the lines {BEGIN} and {END} around its table of variables")
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"])


def renew(role: Path, *, check: bool) -> Iterator[str]:
    """Write one role's table, or, with ``check``, yield what is wrong with it."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    defaults_file = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(defaults_file.read_text()) if defaults_file.exists() else {}) or {}
    found = options(specs)
    wrong = list(faults(role.name, found, defaults))
    yield from wrong
    path = role / "README.md"
    if wrong:
        return
    try:
        text = path.read_text()
        new = with_table(text, table(found, defaults))
    except (OSError, ValueError) as error:
        yield f"{path.relative_to(ROOT)}: {error}"
        return
    if new != text and check:
        yield f"{path.relative_to(ROOT)}: its table of variables is old; next: scripts/role_docs.py"
    elif new != text:
        path.write_text(new)


def main(argv: list[str] | None = None) -> int:
    """Go through all roles; returns the exit code."""
    parser = Parser(description="Write the variables tables of roles/*/README.md.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 on a difference"
    )
    given = parser.parse_args(argv)
    wrong = [
        fault
        for role in sorted((ROOT / "roles").iterdir())
        if (role / "meta" / "argument_specs.yml").exists()
        for fault in renew(role, check=given.check)
    ]
    for fault in wrong:
        sys.stderr.write(f"{fault}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The rooms of the design: who may import whom, and who may not know of the lab."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flotilla import environment

ROOT = environment.root()
PACKAGE = ROOT / "scripts" / "flotilla"

# What every room stands on: no decision and no edge is in these.
GROUND = {
    *("environment", "errors", "files", "kinds", "settings", "settings_deploy", "snapshot"),
    *("wait", "words"),
}
EDGES = {"aws", "hosts"}

LAB_WORDS = re.compile(
    r"""\benv\s*[!=]=\s*["']lab["']      # env == "lab"
      | ["']lab["']\s*[!=]=\s*           # "lab" == env
      | \bis_lab\b | \bin_lab\b | \blab_mode\b
      | endpoint_url[^\n]{0,20}127\.0\.0\.1
    """,
    re.VERBOSE,
)


def imported(file: Path) -> set[str]:
    """Every module a file imports, also inside functions, with full names."""
    names: set[str] = set()
    inside = file.is_relative_to(ROOT / "scripts")
    package = file.relative_to(ROOT / "scripts").with_suffix("").parts[:-1] if inside else ()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def ours(file: Path) -> set[str]:
    """The rooms of the package that a file imports from: ``flotilla.aws.session`` is ``aws``."""
    parts = [name.split(".") for name in imported(file)]
    return {name[1] for name in parts if name[0] == "flotilla" and len(name) > 1}


def python_files(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if "var" not in path.relative_to(ROOT).parts)


def named(files: list[Path]) -> list[object]:
    return [pytest.param(file, id=str(file.relative_to(ROOT))) for file in files]


@pytest.mark.parametrize("file", named(python_files("scripts/flotilla/rules")))
def test_rules_import_only_other_rules(file):
    assert ours(file) <= {"rules"}
    outside = {name.split(".")[0] for name in imported(file)} - {"flotilla"}
    assert not outside & {"boto3", "botocore", "fabric", "paramiko", "requests", "subprocess"}
    assert not outside & {"time", "random", "os", "socket"}, "time and chance are arguments"


@pytest.mark.parametrize(
    "file", named(python_files("scripts/flotilla/aws", "scripts/flotilla/hosts"))
)
def test_edges_import_no_capability(file):
    assert ours(file) <= GROUND | EDGES | {"rules"}


@pytest.mark.parametrize("file", named([PACKAGE / f"{name}.py" for name in sorted(GROUND)]))
def test_the_ground_imports_neither_edges_nor_capabilities(file):
    assert ours(file) <= GROUND


@pytest.mark.parametrize("file", named(python_files("scripts", "inventory")))
def test_flotilla_knows_nothing_of_the_lab(file):
    assert "lab" not in {name.split(".")[0] for name in imported(file)}


@pytest.mark.parametrize("file", named(python_files("lab")))
def test_the_lab_knows_nothing_of_flotilla(file):
    assert "flotilla" not in {name.split(".")[0] for name in imported(file)}


def texts() -> list[Path]:
    """What configures and operates hosts; fabfile/lab.py is the operator's door to the lab."""
    folders = ("roles", "playbooks", "packer", "scripts", "fabfile")
    kinds = {".py", ".yml", ".yaml", ".j2", ".hcl", ".sh", ""}
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return sorted(
        path
        for path in found
        if path.is_file()
        and path.suffix in kinds
        and "__pycache__" not in path.parts
        and not path.is_relative_to(ROOT / "fabfile" / "lab")
    )


def test_nothing_asks_whether_it_runs_in_the_lab():
    asking = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in texts()
        for found in LAB_WORDS.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert asking == []


@pytest.mark.parametrize(
    "line",
    ['if settings.env == "lab":', "when: fleet.env == 'lab'", "{% if env != 'lab' %}", "is_lab"],
)
def test_a_question_about_the_lab_would_be_seen(line):
    assert LAB_WORDS.search(line)


def test_relative_and_late_imports_are_seen(tmp_path):
    file = tmp_path / "late.py"
    file.write_text("def f():\n    import flotilla.aws\n    from flotilla import hosts\n")
    assert {"flotilla.aws", "flotilla.hosts"} <= imported(file)

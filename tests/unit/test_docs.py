"""What the documents promise exists: commands, flags, keys, files, tables."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from invoke.collection import Collection
from invoke.exceptions import ParseError
from invoke.parser import Parser
from runbooks import FOLDER, KINDS, REPO, SECTIONS, commands, pages, sections

DOCUMENTS = sorted(
    REPO / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FAB = re.compile(r"^(?:\S+=\S+ |sudo .*)?fab ([a-z]+\.[a-z_-]+.*)$", re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
_KEY = re.compile(r"`(fleet(?:\.[a-z_]+)+)`")


@cache
def tasks() -> Collection:
    sys.path.insert(0, str(REPO))
    from fabfile import namespace

    return namespace


def parse(argv: list[str]) -> None:
    """Have Invoke itself read a command line. Raises ParseError for what it would refuse."""
    unread = Parser(contexts=tasks().to_contexts()).parse_argv(argv)
    for context in unread:
        missing = context.missing_positional_args
        if missing:
            raise ParseError(f"{context.name} wants {[arg.name for arg in missing]}", context)


def inline(text: str) -> list[str]:
    """What follows ``fab `` in inline code, on one line each."""
    found = [" ".join(code.split()) for code in _INLINE.findall(_FENCE.sub("", text))]
    return [match[1] for code in found if (match := _FAB.match(code))]


def name(path: Path) -> str:
    return str(path.relative_to(REPO))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_task_and_flag_in_a_document_exists(path: Path) -> None:
    text = path.read_text()
    for given in inline(text):
        words = shlex.split(given.replace("'s", ""))
        context = next((c for c in tasks().to_contexts() if words[0] in {c.name, *c.aliases}), None)
        assert context, f"`fab {given}`: there is no task {words[0]}"
        for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert flag in context.flags, f"`fab {given}`: {words[0]} has no {flag}"
    for command in commands(text):
        argv = command.fab
        if argv and not argv[0].startswith("-"):
            parse(argv)


def test_every_command_that_a_message_names_exists() -> None:
    known = {word for context in tasks().to_contexts() for word in (context.name, *context.aliases)}
    for folder in ("scripts", "fabfile", "lab", "roles", "playbooks"):
        for path in (p for p in (REPO / folder).rglob("*") if p.suffix in {".py", ".yml", ".j2"}):
            for task in re.findall(r"\bfab ([a-z]+\.[a-z_]+(?:-[a-z_]+)*)", path.read_text()):
                assert task in known, f"{name(path)} names fab {task}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", path.read_text())):
        assert (path.parent / target).exists(), f"{name(path)} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_key_of_fleet_yml_in_a_document_exists(path: Path) -> None:
    example = REPO / "inventory/production.example/group_vars/all/fleet.yml"
    for key in _KEY.findall(path.read_text()):
        value = yaml.safe_load(example.read_text())
        if key == "fleet.yml":
            continue
        for part in key.split("."):
            assert part in value, f"{name(path)} names {key}; there is no {part}"
            value = value[part]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_make_target_in_a_document_exists(path: Path) -> None:
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", path.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"there is no make {target}"


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_a_run_book_has_its_sections_and_says_what_its_commands_do(path: Path) -> None:
    text = path.read_text()
    assert list(sections(text)) == SECTIONS
    found = list(commands(text))
    assert text.count("```sh") == len(re.findall(r"```sh \w+\n", text))
    assert {command.kind for command in found} <= KINDS
    for command in found:
        assert (command.kind == "breaks") == (command.section == "Rehearsed by")
        assert command.kind == "breaks" or "--yes" not in command.line, "readers want to be asked"


def test_every_run_book_and_variable_is_in_the_list() -> None:
    listed = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"\]\(([a-z-]+\.md)\)", listed)) == {path.name for path in pages()}
    known = set(re.findall(r"`(\$[A-Z_]+)`", listed))
    for path in pages():
        lines = " ".join(command.line for command in commands(path.read_text()))
        used = set(re.findall(r"\$[A-Z_]+", lines))
        assert used <= known, f"{path.name} uses {used - known}"


def test_the_front_page_is_as_long_as_one_reads() -> None:
    assert 150 <= len((REPO / "README.md").read_text().splitlines()) <= 200


def test_role_manuals_are_short_and_list_every_variable_as_it_is() -> None:
    for path in REPO.glob("roles/*/README.md"):
        # In the table things are looked up; what is read is the rest.
        prose = [line for line in path.read_text().splitlines() if not line.startswith("| `")]
        assert len(prose) <= 60, name(path)
    done = subprocess.run(
        [sys.executable, REPO / "scripts" / "role_docs.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

"""The run-books as data: pages, their sections, and the blocks of commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
FOLDER = REPO / "docs" / "runbooks"
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Undo", "Rehearsed by"]
KINDS = {"reads", "changes", "plans", "breaks"}
_BLOCK = re.compile(r"^```sh(?: (?P<kind>\w+))?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"\s+# exit (\d+(?: or \d+)*)$")


@dataclass(frozen=True)
class Command:
    """One line of a block: ``line`` as it is typed, ``exits`` the codes it may end with."""

    kind: str
    section: str
    line: str
    exits: frozenset[int]

    @property
    def fab(self) -> list[str] | None:
        """What is given to fab, split as a shell would; None for a command without fab."""
        words = shlex.split(self.line)
        return words[words.index("fab") + 1 :] if "fab" in words else None


def pages() -> list[Path]:
    """Every page, without the list of them."""
    return sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")


def sections(text: str) -> dict[str, str]:
    """Title of each ``##`` section to its text, in order."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands(text: str) -> Iterator[Command]:
    """Every command of every ``sh`` block in Markdown, in order."""
    for section, body in sections(text).items():
        for block in _BLOCK.finditer(body):
            for line in filter(None, block["body"].splitlines()):
                found = _EXIT.search(line)
                codes = frozenset(map(int, found[1].split(" or "))) if found else frozenset({0})
                yield Command(block["kind"] or "", section, _EXIT.sub("", line), codes)

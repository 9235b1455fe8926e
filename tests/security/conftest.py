"""What other people's tools say of this repository, against what was looked at and accepted."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from security.tls import program

ROOT = Path(__file__).resolve().parents[2]
ACCEPTED: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parent / "accepted.yml").read_text()
)
# A finding: where, by which rule, and which one of them (detect-secrets' hash), as often as it is.
Finding = tuple[str, str, str]


def accepted(tool: str) -> Counter[Finding]:
    """The findings of a tool that somebody has looked at and given a reason for."""
    found: Counter[Finding] = Counter()
    for entry in ACCEPTED[tool]:
        assert entry["why"], entry
        for which in entry.get("which", [""]):
            found[entry["file"], entry["rule"], which] += entry.get("times", 1)
    return found


@pytest.fixture
def judge(scores: dict[str, str]) -> Callable[[str, Iterable[Finding]], None]:
    """Compare findings with the accepted ones, both ways, and note the score."""

    def judged(tool: str, found: Iterable[Finding]) -> None:
        seen, known = Counter(found), accepted(tool)
        new, gone = seen - known, known - seen
        scores[tool] = f"{new.total()} to look at, {(seen & known).total()} accepted with a reason"
        assert not new, "look at these; mend them, or give a reason in tests/security/accepted.yml"
        assert not gone, "take these out of tests/security/accepted.yml: they are gone"

    return judged


@pytest.fixture
def tool() -> Callable[..., str]:
    """What a program that ``make setup`` installs says on stdout, whatever it thinks of us."""

    def run(name: str, *arguments: str) -> str:
        done = subprocess.run(
            [program(name), *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.stdout or not done.returncode, done.stderr
        return done.stdout

    return run

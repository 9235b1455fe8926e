"""What is known to be wrong with an image's packages, as apt and debsecan say it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# "CVE-2024-1 bash (fixed, remotely exploitable, high urgency)"
_FLAW = re.compile(r"^(?P<name>\S+) (?P<package>\S+)(?: \((?P<notes>.*)\))?$")
_SECURITY = "-security"
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Fix:
    """A newer version of an installed package; ``security`` when the security archive has one."""

    package: str
    old: str
    new: str
    security: bool

    def __str__(self) -> str:
        return f"{self.package} {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Flaw:
    """A known vulnerability of an installed package; ``notes`` are debsecan's words."""

    name: str
    package: str
    notes: tuple[str, ...]

    @property
    def fixed(self) -> bool:
        """Whether a version without it is to be had."""
        return "fixed" in self.notes


@dataclass(frozen=True, slots=True)
class Fixes:
    """What apt knows: ``found`` is None when it could not be asked, and ``why`` says why not.

    ``listed_at`` is when its package lists were fetched; ``why``, why they are not newer.
    """

    found: tuple[Fix, ...] | None
    listed_at: datetime | None
    why: str = ""

    def __str__(self) -> str:
        if self.found is None or self.listed_at is None:
            return f"fixes outstanding: not known: {self.why}"
        by = f"by package lists of {self.listed_at:%Y-%m-%d %H:%M} UTC"
        by += f" (no newer ones: {self.why})" if self.why else ""
        if not self.found:
            return f"no package has a newer version, {by}"
        security = [fix.package for fix in self.found if fix.security]
        named = f": {_some(security)}" if security else ""
        return (
            f"newer versions of {len(self.found)} packages, security fixes of {len(security)}"
            f"{named}; {by}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "found": _rows(self.found),
            "lists_fetched_at": self.listed_at.isoformat() if self.listed_at else None,
            "why_not": self.why,
        }


@dataclass(frozen=True, slots=True)
class Flaws:
    """What debsecan knows: ``found`` is None when it could not be asked; ``why`` says why not."""

    found: tuple[Flaw, ...] | None
    why: str = ""

    def __str__(self) -> str:
        if self.found is None:
            return f"known vulnerabilities: not known: {self.why}"
        fixed = sorted({flaw.package for flaw in self.found if flaw.fixed})
        return f"{len({flaw.name for flaw in self.found})} known vulnerabilities; " + (
            f"newer versions of {_some(fixed)} are without some" if fixed else "no fix exists yet"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {"found": _rows(self.found), "why_not": self.why}


@dataclass(frozen=True, slots=True)
class Report:
    """What is known to be wrong with one image."""

    fixes: Fixes
    flaws: Flaws

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {"fixes": self.fixes.as_dict(), "vulnerabilities": self.flaws.as_dict()}


def unknown(why: str) -> Report:
    """The report on an image of which nothing can be judged."""
    return Report(Fixes(None, None, why), Flaws(None, why))


def policy(lines: Iterable[str]) -> tuple[Fix, ...]:
    """The fixes in what ``apt-cache policy PACKAGE...`` printed."""
    return tuple(fix for block in _blocks(lines) if (fix := _fix(block)))


def debsecan(lines: Iterable[str]) -> tuple[Flaw, ...]:
    """The flaws in what ``debsecan --format summary`` printed."""
    found = filter(None, (_FLAW.match(line) for line in lines))
    return tuple(
        Flaw(one["name"], one["package"], tuple(filter(None, (one["notes"] or "").split(", "))))
        for one in found
    )


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """A package's lines; the first is its name, and the only one that is not indented."""
    block: list[str] = []
    for line in lines:
        if block and not line.startswith(" "):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _fix(block: Sequence[str]) -> Fix | None:
    values = dict(line.strip().split(": ", 1) for line in block if ": " in line)
    old, new = values.get("Installed", "(none)"), values.get("Candidate", "(none)")
    if "(none)" in (old, new) or old == new:
        return None
    # Newest first; the installed one is marked, and what is above it is newer.
    newer = [line.split() for line in _until(block, " *** ")]
    security = any(_SECURITY in words[2] for words in newer if len(words) > 3)
    return Fix(block[0].rstrip(":"), old, new, security)


def _until(block: Sequence[str], mark: str) -> Iterator[str]:
    for line in block:
        if line.startswith(mark):
            return
        yield line


def _rows(found: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    if found is None:
        return None
    return [{name: getattr(one, name) for name in one.__slots__} for one in found]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

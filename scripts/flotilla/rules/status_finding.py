"""One thing that is wrong with a fleet, and how soon somebody should act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

STATUS = "fab fleet.status"
# Run-books that more than one part of the fleet leads to.
FAILED_OVER, NO_WRITES = "mysql-failed-over", "mysql-takes-no-writes"


class Severity(IntEnum):
    """How soon somebody should act; the smaller, the sooner."""

    DOWN = 1  # clients notice
    RISK = 2  # less stands between clients and a fault than should
    NOTE = 3  # nothing suffers


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: with what, in a sentence, and what to type next.

    ``page`` is the run-book for it, the name of a file in docs/runbooks/ without ``.md``, or "".
    """

    severity: Severity
    subject: str
    what: str
    next: str
    page: str = ""

    def as_dict(self) -> dict[str, str]:
        """For ``--json``."""
        return {
            "severity": self.severity.name.lower(),
            "subject": self.subject,
            "what": self.what,
            "next": self.next,
            "page": self.page,
        }


def down(subject: str, what: str, after: str, page: str = "") -> Finding:
    """Something clients notice; ``after`` is the command to type next."""
    return Finding(Severity.DOWN, subject, what, after, page)


def risk(subject: str, what: str, after: str, page: str = "") -> Finding:
    """Something that leaves less between clients and a fault."""
    return Finding(Severity.RISK, subject, what, after, page)


def note(subject: str, what: str, after: str, page: str = "") -> Finding:
    """Something to know."""
    return Finding(Severity.NOTE, subject, what, after, page)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names)

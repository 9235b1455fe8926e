"""Words for people."""

from __future__ import annotations

from datetime import UTC, datetime


def counted(number: int, noun: str) -> str:
    """A number and what it is a number of: "1 host", "2 hosts"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def minute(seconds: float) -> str:
    """Seconds since the epoch as a time of the day: "16:29 UTC"."""
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M} UTC"


def last_line(text: str, otherwise: str) -> str:
    """The last line that says anything, where a program tells why it failed; else ``otherwise``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else otherwise

"""Words for people."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number and what it is a number of: "1 host", "2 hosts"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

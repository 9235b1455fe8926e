"""A chain of lines: each carries the hash of the one before it, so that none can be changed,
dropped or put between two others without the next one saying so.

The last line has nobody after it: its copy elsewhere vouches for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

BEGINNING = "0" * 64


def linked(last: bytes | None, entry: Mapping[str, Any]) -> str:
    """``entry`` as the line that follows ``last`` (its bytes without the end of line, if any).

    A last line that a crash cut off in the middle is followed like any other: it stays as it is.
    """
    number = 1 if last is None else _number(last) + 1
    return json.dumps({"seq": number, "previous": _hash(last), **entry})


def faults(lines: Sequence[bytes]) -> list[str]:
    """What is wrong with a chain, in order, as sentences; empty when it is whole."""
    found = []
    last: bytes | None = None
    for position, line in enumerate(lines, start=1):
        entry = _parsed(line)
        if entry is None:
            found.append(f"line {position} is cut off or is no JSON")
        elif entry.get("previous") != _hash(last):
            found.append(f"line {position} does not follow the line before it")
        last = line
    return found


def name(lines: Sequence[bytes]) -> str:
    """The name of a chain: no two chains begin with the same line."""
    return _hash(lines[0])[:16]


def differences(lines: Sequence[bytes], kept: Mapping[int, bytes]) -> list[str]:
    """What is wrong between a chain and its copy, whose lines are by number, from 1.

    The copy may begin later, never end later or have a gap; the end of a chain, which has nobody
    after it, is vouched for by the copy.
    """
    found = []
    for number in range(min(kept, default=1), max([*kept, len(lines)], default=0) + 1):
        if number > len(lines):
            found.append(f"line {number} is in the bucket and not in the file")
        elif number not in kept:
            found.append(f"line {number} is not in the bucket")
        elif kept[number] != lines[number - 1]:
            found.append(f"line {number} is another one in the bucket")
    return found


def _hash(line: bytes | None) -> str:
    return BEGINNING if line is None else hashlib.sha256(line).hexdigest()


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _number(line: bytes) -> int:
    number = (_parsed(line) or {}).get("seq", 0)
    return number if isinstance(number, int) else 0

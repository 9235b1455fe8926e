"""Every secret of a fleet is a canary: random, so no two are alike, and looked for where none is.

Decides only; ``search.py`` looks.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from flotilla.rules.secrets import ROTATED

# Shorter ones would be found by chance.
LEAST = 16
# Before the public half of an OpenSSH key of ours, and how long that is.
_KIND = b"ssh-ed25519\0\0\0\x20"
_PUBLIC_BYTES = 32
# A certificate may follow it, which is no secret.
_KEY = r"BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)\n-----END"


class Found(NamedTuple):
    """A slot's value was found on a host (its name and role; "" for no host of the fleet)."""

    slot: str
    host: str
    role: str
    place: str


def values(secret: str) -> list[str]:
    """The words that are worth hiding: keys of a ring, or of a private key its lines.

    The first line of a key is the same in all, the last one may be short or public.
    """
    if "PRIVATE KEY-----" in secret:
        keys = re.findall(_KEY, secret, flags=re.DOTALL)
        return [line for key in keys for line in _own(key.split("\n"))]
    return secret.split()


def _own(lines: Sequence[str]) -> list[str]:
    """The lines of a private key without those that hold its public half: certificates have that.

    A line need not begin where a group of four characters does.
    """
    blob = base64.b64decode("".join(lines))
    at = blob.find(_KIND) + len(_KIND)
    public = blob[at : at + _PUBLIC_BYTES] if _KIND in blob else None
    own, start = [], len(lines[0])
    for line in lines[1:-1]:
        end = start + len(line)
        held = blob[start * 6 // 8 : -(-end * 6 // 8)]
        if public is None or public not in held:
            own.append(line)
        start = end
    return own


def forms(value: str) -> list[str]:
    """A value as it is, in a URL, in JSON, and in base64 wherever in the text it begins."""
    found = [value, quote(value, safe=""), json.dumps(value)[1:-1]]
    for before in range(3):
        text = base64.b64encode(b"\0" * before + value.encode()).decode()
        # Characters that also depend on neighbours are left out.
        whole = (before + len(value.encode())) * 8 // 6
        inner = text[(0, 2, 3)[before] : whole]
        found += [inner, inner.translate(str.maketrans("+/", "-_"))]
    return list(dict.fromkeys(found))


def texts(secrets: Mapping[str, str]) -> dict[str, list[str]]:
    """By slot all that is looked for. ``ValueError`` where a find would not tell the slot."""
    found = {slot: values(secret) for slot, secret in secrets.items()}
    owner: dict[str, str] = {}
    for slot, words in found.items():
        if not words or min(map(len, words)) < LEAST:
            raise ValueError(f"{slot} is empty, or too short to be looked for")
        for word in words:
            if owner.setdefault(word, slot) != slot:
                raise ValueError(f"{slot} and {owner[word]} have a value in common")
    return {slot: [form for word in words for form in forms(word)] for slot, words in found.items()}


def belongs(found: Found, places: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a host of that role may have that secret there (``places.yml``, and ROTATED)."""
    slot = re.sub(r"\.(next|previous|refused)$", "", found.slot)
    if any(
        (one.key, one.users, one.file) == (slot, found.role, found.place)
        for one in ROTATED.values()
        if one.file
    ):
        return True
    return any(
        slot in entry["slots"] and found.role == entry["role"] and found.place.startswith(place)
        for entry in places
        for place in entry["places"]
    )


def leaks(found: Iterable[Found], places: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each secret that is where it does not belong; no value in any."""
    return sorted(
        f"{one.slot} is on {one.host or 'no host'}: {one.place}"
        if one.slot != "unread"
        else f"{one.host}: nothing opens {one.place}"
        for one in set(found)
        if not belongs(one, places)
    )

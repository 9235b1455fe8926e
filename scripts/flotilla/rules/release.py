"""What a release may be called, where it is kept, and when a version may be used again."""

from __future__ import annotations

import re
from datetime import datetime

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FOLDER = "app/"
SUFFIX = ".tar.gz"


def why_not_a_version(text: str) -> str | None:
    """A version names a folder on hosts and an object in S3, so it is one plain word."""
    if _VERSION.fullmatch(text):
        return None
    return (
        f"{text!r} is not 1 to 64 letters, digits or any of . _ - that begin with a letter or digit"
    )


def key(version: str) -> str:
    """The object a version is kept in."""
    return f"{FOLDER}{version}{SUFFIX}"


def version_of(object_key: str) -> str | None:
    """The version an object holds; None for an object that is no release."""
    if not (object_key.startswith(FOLDER) and object_key.endswith(SUFFIX)):
        return None
    version = object_key[len(FOLDER) : -len(SUFFIX)]
    return None if why_not_a_version(version) else version


def default_version(now: datetime) -> str:
    """A version for a release that was given none: names sort in the order of release."""
    return now.strftime("%Y%m%d-%H%M%S")


def why_not_publish(version: str, sha256: str, existing: str | None) -> str | None:
    """A version that exists may be published again only if it is the same, byte for byte."""
    if existing is None or existing == sha256:
        return None
    return (
        f"version {version} is released already with other content "
        f"(checksum {existing[:12]}, yours is {sha256[:12]})"
    )

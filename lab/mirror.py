"""The package mirror: the one this machine's own apt is configured with, never a name of ours."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from lab.errors import Unmet
from lab.run import run

_FORMAT = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where Debian and its security updates are fetched from, without a trailing slash."""

    archive: str
    security: str | None


def choose(targets: Iterable[str]) -> Mirror | None:
    """Find Debian's mirror in lines of `origin|label|uri`, as apt lists its index targets."""
    archive: str | None = None
    security: str | None = None
    for line in targets:
        origin, _, rest = line.partition("|")
        label, _, uri = rest.partition("|")
        uri = uri.rstrip("/")
        if origin != "Debian" or not uri.startswith(("http://", "https://")):
            continue
        if label == "Debian-Security":
            security = security or uri
        elif label == "Debian":
            archive = archive or uri
    return Mirror(archive, security) if archive else None


def hosts(targets: Iterable[str]) -> frozenset[str]:
    """Host names of every index apt is configured with."""
    uris = (line.rpartition("|")[2] for line in targets)
    return frozenset(uri.split("/")[2] for uri in uris if uri.startswith(("http://", "https://")))


def find() -> Mirror:
    """The mirror to build images from.

    `FLOTILLA_DEBIAN_MIRROR` (and `FLOTILLA_DEBIAN_SECURITY_MIRROR`) win, for machines that do not
    run Debian.
    """
    named = os.environ.get("FLOTILLA_DEBIAN_MIRROR")
    if named:
        return Mirror(
            named.rstrip("/"),
            os.environ.get("FLOTILLA_DEBIAN_SECURITY_MIRROR", "").rstrip("/") or None,
        )
    found = choose(run(["apt-get", "indextargets", "--format", _FORMAT]).splitlines())
    if found is None:
        raise Unmet(
            "this machine's apt has no Debian mirror configured",
            why="the lab's hosts are Debian 13, built from a Debian mirror; nothing was changed",
            next_command="apt-get update (on Debian), or FLOTILLA_DEBIAN_MIRROR=<url> fab lab.up",
        )
    return found

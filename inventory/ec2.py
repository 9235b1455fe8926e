#!/usr/bin/env python3
"""Ansible's inventory of one environment: ``inventory/<env>/ec2.py --list``.

Linked into every environment's folder, whose name says which environment it is for. A snapshot
that is fresh and was made from today's fleet.yml is printed as it lies in the file: no package is
imported, no API is called, and any Python 3 will do. Everything else is left to
flotilla.inventory.script: an old snapshot, a changed fleet.yml, an outage of the API.
"""

from __future__ import annotations

import sys
import time
from os import _exit as os_exit
from os import environ, execv
from pathlib import Path

# The shape of var/<env>/inventory.json; flotilla.inventory.store writes the same number.
SCHEMA = 1


def place(script: Path) -> tuple[Path, str]:
    """The repository and the environment, from the path this script was called by."""
    folder = script.parent.resolve()
    if folder.name == "inventory":
        return folder.parent, environ.get("FLOTILLA_ENV") or "lab"
    return folder.parents[1], folder.name


def hit(root: Path, env: str) -> bytes | None:
    """The ``--list`` document while the snapshot is good; None to have everything checked."""
    import hashlib  # noqa: PLC0415  --help needs neither
    import json  # noqa: PLC0415

    fleet = root / "inventory" / env / "group_vars" / "all" / "fleet.yml"
    try:
        with (root / "var" / env / "inventory.json").open("rb") as file:
            header = json.loads(file.readline().strip()[len(b'{"header":') : -1])
            limit = float(environ.get("FLOTILLA_INVENTORY_FRESH") or header["fresh_seconds"])
            good = (
                header["schema"] == SCHEMA
                and header["hosts"] > 0
                and header["root"] == str(root)
                and 0 <= time.time() - header["fetched_at"] <= limit
                and header["digest"] == hashlib.sha256(fleet.read_bytes()).hexdigest()
            )
            line = file.readline()
            # Half a document would be taken for a fleet without hosts. The next line is read to
            # know that this one and its successor reached the disk.
            whole = line.startswith(b'"ansible":{') and line.endswith(b"},\n") and file.read(1)
            return line.strip()[len(b'"ansible":') : -1] if good and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shown(listing: bytes) -> int:
    """Print the document; a reader that has gone, or a full disk, is an exit code."""
    try:
        sys.stdout.buffer.write(listing + b"\n")
        sys.stdout.buffer.flush()
    except (OSError, AttributeError) as error:  # a closed stdout is None
        sys.stderr.write(f"error: the hosts could not be written to stdout: {error}\n")
        # What is left in the buffer would be tried again, and complained about, on the way out.
        os_exit(1)
    return 0


def main(arguments: list[str]) -> int:
    """Print the answer to ``arguments``; returns the exit code."""
    root, env = place(Path(__file__))
    listing = hit(root, env) if arguments == ["--list"] else None
    if listing is not None:
        return shown(listing)
    python = root / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != root / ".venv":
        execv(python, [str(python), __file__, *arguments])  # noqa: S606  ourselves, no shell
    sys.path.insert(0, str(root / "scripts"))
    try:
        from flotilla.inventory import script  # noqa: PLC0415  slow, and not needed on a hit
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{__file__}: {error}. Next: make setup\n")
        return 1
    return script.main(root, env, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

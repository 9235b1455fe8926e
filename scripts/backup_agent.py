#!/usr/bin/env python3
"""Pack what a MySQL host does about backups into one file, for the role that installs it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla.agent.bundle import write
from flotilla.options import Parser, finish


def main() -> int:
    """Write the file, unless it already holds the same bytes; returns the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="where to write the zip file")
    path = parser.parse_args().output

    def act() -> int:
        write("flotilla.agent.backup", path)
        return 0

    return finish(act)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Pack the health endpoint of a MySQL host into one file, for the role that installs it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla.agent.bundle import write


def main() -> None:
    """Write the file, unless it already holds the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="where to write the zip file")
    write("flotilla.agent.mysql", parser.parse_args().output)


if __name__ == "__main__":
    main()

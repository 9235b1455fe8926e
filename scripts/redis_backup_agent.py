#!/usr/bin/env python3
"""Pack what a Redis host does about backups into one file, for the role that installs it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla.agent.bundle import main

if __name__ == "__main__":
    sys.exit(main("flotilla.agent.redis_backup", __doc__))

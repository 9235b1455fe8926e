#!/usr/bin/env python3
"""Pack what keeps a host's sshd up to date about certificates, for the role that installs it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla.agent.bundle import main

if __name__ == "__main__":
    sys.exit(main("flotilla.agent.access", __doc__))

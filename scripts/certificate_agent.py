#!/usr/bin/env python3
"""Pack what orders and serves a load balancer's certificate into one file, for the role."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla.agent.bundle import main

if __name__ == "__main__":
    sys.exit(main("flotilla.certificate.service", __doc__))

"""Start what runs beside a MySQL server (``flotilla.agent.service``), in little memory.

PyMySQL imports cryptography wherever that is installed: 10 MiB of the 40 this process may take, to
hide passwords that are sent without TLS, which nobody here does.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from flotilla.rules.mysql_health import HEALTH_PORT


def main() -> None:
    """Parse the command line of the unit and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--address", default="", help="where to listen; empty, everywhere")
    parser.add_argument("--port", type=int, default=HEALTH_PORT)
    parser.add_argument("--lag-limit-seconds", type=float, default=5.0)
    parser.add_argument("--authority", required=True, help="PEM file: who vouches for members")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.modules["cryptography"] = None  # type: ignore[assignment]  # Python's way to say: not there
    from flotilla.agent.service import Agent  # noqa: PLC0415  see above

    Agent(options, os.environ).run()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Make the MySQL cluster whole, or look at it: fab mysql.ensure and mysql.status for scripts.

Exit codes: 0 done or nothing to do, 2 a host failed, 3 refused and nothing changed, 4 unreachable,
5 bad option. One JSON object on stdout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla import config
from flotilla.errors import Refused
from flotilla.mysql import operate
from flotilla.options import Parser, finish


def main(argv: list[str] | None = None) -> int:
    """Run one command and print its outcome."""
    parser = Parser(description="Make the MySQL cluster whole, or look at it.")
    parser.add_argument("command", choices=["ensure", "status"])
    parser.add_argument("--env", help="the environment (default: FLOTILLA_ENV, then lab)")
    parser.add_argument("--yes", action="store_true", help="without it, ensure prints its plan")
    options = parser.parse_args(argv)

    def said(line: str) -> None:
        sys.stderr.write(line + "\n")

    def confirmed(plan: str) -> None:
        said(plan)
        if not options.yes:
            raise Refused("this was the plan", untouched="Nothing was changed", next="add --yes")

    def act() -> int:
        settings = config.load(options.env)
        if options.command == "status":
            outcome = operate.status(settings)
        else:
            outcome = operate.ensure(settings, confirmed=confirmed, said=said)
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()
        return 0

    return finish(act)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Deploy a release to every application host while clients are served: fab deploy.run for scripts.

Exit codes: 0 deployed and no request failed, 1 requests failed, 2 a host failed and all were
brought back (or are named), 3 refused and nothing changed, 4 unreachable, 5 bad option.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla import config, deploy
from flotilla.errors import Refused
from flotilla.options import Parser, finish
from flotilla.rules.deploy import Options, Plan


def main(argv: list[str] | None = None) -> int:
    """Deploy, and print the outcome as one JSON object."""
    parser = Parser(description="Deploy a release to every application host.")
    parser.add_argument("version", help="the release; fab app.list shows them")
    parser.add_argument("--env", help="the environment (default: FLOTILLA_ENV, then lab)")
    parser.add_argument("--batches", default="1,50%", help="sizes; the last one repeats (1,50%%)")
    parser.add_argument("--adopt", action="store_true", help="take drained hosts along")
    parser.add_argument("--yes", action="store_true", help="without it, only print the plan")
    options = parser.parse_args(argv)

    def confirmed(plan: Plan) -> None:
        sys.stderr.write(deploy.described(plan) + "\n")
        if not options.yes:
            raise Refused("this was the plan", untouched="Nothing was changed", next="add --yes")

    def act() -> int:
        outcome = deploy.deploy(
            config.load(options.env),
            options.version,
            Options(batches=tuple(options.batches.split(",")), adopt=options.adopt),
            confirmed=confirmed,
            said=lambda step: sys.stderr.write(
                f"{step.host} {step.name} ... {step.error or 'ok'} {step.seconds:.1f} s\n"
            ),
        )
        sys.stdout.write(json.dumps(outcome.as_dict()) + "\n")
        outcome.raise_failure()
        return 0

    return finish(act)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Deploy a release to every application host while clients are served: fab deploy.run for scripts.

Exit codes: 0 deployed and no request failed, 1 requests failed, 2 a host failed and all were
brought back (or are named), 3 refused and nothing changed, 4 unreachable, 5 bad option,
99 interrupted and all is as before.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla import config, deploy
from flotilla.deploy_words import HELP
from flotilla.errors import Refused
from flotilla.options import Parser, finish


def main(argv: list[str] | None = None) -> int:
    """Deploy, and print the outcome as one JSON object."""
    options = _parser().parse_args(argv)
    given = {one.name: getattr(options, one.name) for one in fields(deploy.Words)}
    words = deploy.Words(**{name: value for name, value in given.items() if value is not None})

    def confirmed(made: deploy.Proposal) -> None:
        sys.stderr.write(deploy.described(made) + "\n")
        if not options.yes:
            raise Refused("this was the plan", untouched="Nothing was changed", next="add --yes")

    def act() -> int:
        settings = config.load(options.env)
        asked = deploy.request(settings, words)
        outcome = deploy.deploy(
            settings,
            asked.version,
            asked.options,
            confirmed=confirmed,
            said=_told,
            take_over=options.take_over,
            terms=asked.terms,
        )
        sys.stdout.write(json.dumps(outcome.as_dict()) + "\n")
        outcome.raise_failure()
        return 0

    return finish(act)


def _told(step: deploy.Step) -> None:
    sys.stderr.write(f"{step.host} {step.name} ... {step.error or 'ok'} {step.seconds:.1f} s\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Deploy a release to every application host.")
    told = {name: text.replace("%", "%%") for name, text in HELP.items()}
    parser.add_argument("version", nargs="?", help=told.pop("version"))
    for switch in ("adopt", "outage"):
        parser.add_argument(f"--{switch}", action="store_true", help=told.pop(switch))
    for name, text in told.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--env", help="the environment (default: FLOTILLA_ENV, then lab)")
    parser.add_argument("--take-over", action="store_true", help="take the lock of a dead run")
    parser.add_argument("--yes", action="store_true", help="without it, only print the plan")
    return parser


if __name__ == "__main__":
    sys.exit(main())

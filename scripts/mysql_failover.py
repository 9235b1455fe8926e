#!/usr/bin/env python3
"""Act on the MySQL cluster from scripts and schedulers: what fab mysql.* does, one JSON object out.

Exit codes: 0 done or nothing to do, 2 begun and to be completed by the same command, 3 refused and
nothing changed, 4 unreachable, 5 bad option. Without --yes a changing command prints its plan.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flotilla import config
from flotilla.errors import Refused
from flotilla.mysql import (
    operate,
    operate_failover,
    operate_grow,
    operate_maintain,
    operate_rebuild,
    operate_record,
)
from flotilla.options import Parser, finish
from flotilla.settings import Settings

Command = Callable[[Settings, argparse.Namespace, dict[str, Any]], Any]

COMMANDS: dict[str, Command] = {
    "status": lambda s, _o, _t: operate.status(s),
    "history": lambda s, _o, _t: operate_record.history(s),
    "acknowledge": lambda s, _o, talk: {
        "acknowledged": [
            one.term for one in operate_record.acknowledge(s, confirmed=talk["confirmed"])
        ]
    },
    "ensure": lambda s, _o, talk: operate.ensure(s, **talk),
    "switchover": lambda s, o, talk: operate.switchover(s, o.to, writers=o.writers, **talk),
    "failover": lambda s, o, talk: operate_failover.failover(
        s, o.to, accept_loss=o.accept_loss, **talk
    ),
    "rejoin": lambda s, o, talk: operate_rebuild.rejoin(s, o.host, **talk),
    "rebuild": lambda s, o, talk: operate_rebuild.rebuild(s, o.host, give_up=o.give_up, **talk),
    "pause": lambda s, o, talk: operate_record.pause(
        s, o.reason, o.minutes, confirmed=talk["confirmed"]
    ),
    "unpause": lambda s, _o, talk: operate_record.unpause(s, confirmed=talk["confirmed"]),
    "add-replica": lambda s, _o, talk: operate_grow.add_replica(s, **talk),
    "patch": lambda s, o, talk: operate_maintain.patch(s, restart=o.restart, **talk),
    "resize": lambda s, _o, talk: operate_maintain.resize(s, **talk),
}


def parser() -> Parser:
    """The command line; options of one command stand behind its name."""
    # No abbreviations: --a must not come to mean --accept-loss.
    made = Parser(description="Act on the MySQL cluster, or look at it.", allow_abbrev=False)
    made.add_argument("--env", help="the environment (default: FLOTILLA_ENV, then lab)")
    made.add_argument("--yes", action="store_true", help="without it, only the plan is printed")
    commands = made.add_subparsers(dest="command", required=True, parser_class=Parser)
    one = {name: commands.add_parser(name, allow_abbrev=False) for name in COMMANDS}
    for name in ("switchover", "failover"):
        one[name].add_argument("--to", help="who takes over")
    one["switchover"].add_argument("--writers", type=int, default=0, help="clients that measure it")
    one["failover"].add_argument("--accept-loss", action="store_true")
    for name in ("rejoin", "rebuild"):
        one[name].add_argument("host")
    one["rebuild"].add_argument("--give-up", action="store_true")
    one["pause"].add_argument("--reason", required=True)
    one["pause"].add_argument("--minutes", type=float, default=60)
    one["patch"].add_argument("--restart", action="store_true")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one command and print its outcome."""
    options = parser().parse_args(argv)

    def said(line: str) -> None:
        sys.stderr.write(line + "\n")

    def confirmed(plan: str) -> None:
        said(plan)
        if not options.yes:
            raise Refused(
                "this was the plan", untouched="Nothing was changed", next="the same with --yes"
            )

    def act() -> int:
        talk = {"confirmed": confirmed, "said": said}
        outcome = COMMANDS[options.command](config.load(options.env), options, talk)
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()
        return 0

    return finish(act)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m flotilla.traffic --url http://... --rate 200 --duration 30``: JSON on stdout."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import threading
from typing import Any, TextIO

import aiohttp

from flotilla.errors import FlotillaError
from flotilla.options import Parser, finish
from flotilla.priority import go_first
from flotilla.traffic.load import KINDS, MIX, Load, Options


def main(argv: list[str] | None = None) -> int:
    """Exit 0 when every request was served, 1 when one failed or a row is lost, 5 bad option."""
    options = _arguments(argv)

    def act() -> int:
        go_first()
        report = asyncio.run(_run(options))
        json.dump(report, sys.stdout)
        sys.stdout.write("\n")
        return 1 if report["failed"] or report.get("lost") else 0

    return finish(act)


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    load = Load(
        Options(
            url=arguments.url.rstrip("/"),
            rate=arguments.rate,
            duration=arguments.duration,
            mix=arguments.mix,
            page=arguments.page,
            source=arguments.source,
            timeout=arguments.timeout,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, load.stop)
    if arguments.until_stdin_closes:
        # A thread, not a pipe on the loop: stdin may be a file, which epoll does not take.
        threading.Thread(target=_follow, args=(sys.stdin, loop, load), daemon=True).start()
    await load.run()
    report = load.report()
    if arguments.verify:
        report |= await _verified(load)
    return report


async def _verified(load: Load) -> dict[str, Any]:
    try:
        lost = await load.lost()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise FlotillaError(
            f"the acknowledged entries cannot be read back ({type(error).__name__}"
            f"{f' {error.status}' if isinstance(error, aiohttp.ClientResponseError) else ''})"
        ) from error
    return {"lost": len(lost), "lost_ids": lost[:20]}


def _follow(stream: TextIO, loop: asyncio.AbstractEventLoop, load: Load) -> None:
    for line in stream:
        loop.call_soon_threadsafe(load.mark, line.strip())
    loop.call_soon_threadsafe(load.stop)


def _mix(text: str) -> dict[str, int]:
    """``keep-alive=3,post=1``, or a single kind."""
    mix = {}
    for part in text.split(","):
        kind, equals, weight = part.partition("=")
        if kind not in KINDS or (equals and not weight.isdigit()):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not KIND or KIND=WEIGHT; kinds: {', '.join(KINDS)}"
            )
        mix[kind] = int(weight) if equals else 1
    return mix


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m flotilla.traffic",
        description="Send requests at a fixed rate and count what came of every one. "
        "Ctrl-C stops and prints the report.",
    )
    parser.add_argument("--url", required=True, help="where to, without a path")
    parser.add_argument("--rate", type=float, default=50, help="requests a second (50)")
    parser.add_argument("--duration", type=float, help="seconds; default: until stopped")
    parser.add_argument("--mix", type=_mix, default=dict(MIX), help="keep-alive=45,post=17,...")
    parser.add_argument("--page", default="/", help="path of the ordinary requests (/)")
    parser.add_argument("--timeout", type=float, default=15, help="seconds for an answer (15)")
    parser.add_argument("--source", help="local address to send from")
    parser.add_argument("--verify", action="store_true", help="read every acknowledged entry back")
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="stop at the end of stdin; each line of it begins a phase of that name",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

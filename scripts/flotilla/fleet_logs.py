"""The journals of one host or many as one, by time, or as they come."""

from __future__ import annotations

import codecs
import re
import shlex
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flotilla import fleet
from flotilla.errors import BadOption, FlotillaError
from flotilla.hosts.ssh import Runner
from flotilla.options import at_least
from flotilla.settings import Settings
from flotilla.snapshot import Host

SECONDS = 20.0
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S* ")
_NOTHING = "-- No entries --"

Say = Callable[[str], None]


def command(unit: str, since: str, lines: int, *, follow: bool = False) -> str:
    """The journalctl of a host; "" for ``unit`` is everything, "" for ``since`` the last lines."""
    words = ["journalctl", "--quiet", "--utc", "--output=short-iso-precise", "--no-pager"]
    words += [f"--unit={unit}"] if unit else []
    words += [f"--since={since}"] if since else []
    words += [f"--lines={lines}"] if follow or not since else []
    words += ["--follow"] if follow else []
    return shlex.join(words)


def read(
    settings: Settings, on: str, *, unit: str, since: str, lines: int
) -> tuple[dict[str, list[str]], dict[str, FlotillaError]]:
    """By host, its lines, and why a host has none. Raises BadOption for no such time."""
    at_least("--lines", lines, 1)
    with fleet.reached(settings, on) as (runner, hosts):
        asked = command(unit, since, lines)
        results = runner.run_on(hosts, asked, sudo=True, seconds=SECONDS, check=False)
    for one in results.results.values():
        if "Failed to parse timestamp" in one.stderr:
            raise BadOption(
                f"--since {since!r} is no time that journalctl knows",
                untouched="Nothing was changed",
                next="for example: --since '10 min ago', --since '2026-01-31 09:00', --since today",
            )
    found = {
        name: [line for line in one.stdout.splitlines() if line != _NOTHING]
        for name, one in results.results.items()
    }
    return found, results.errors


def merged(found: Mapping[str, list[str]]) -> list[str]:
    """All entries by time. Lines without a time of their own stay with the entry they belong to."""
    entries: list[tuple[str, list[str]]] = []
    for lines in found.values():
        first = len(entries)
        for line in lines:
            if _STAMP.match(line) or len(entries) == first:
                entries.append((line.partition(" ")[0], []))
            entries[-1][1].append(line)
    return [line for _, block in sorted(entries, key=lambda entry: entry[0]) for line in block]


def follow(settings: Settings, on: str, *, unit: str, lines: int, line: Say, say: Say) -> None:
    """Hand each ``line`` over as it comes, until interrupted or until every host has gone.

    ``say`` is told of hosts that cannot be followed; when none can, the first's error is raised.
    """
    at_least("--lines", lines, 1)
    with fleet.reached(settings, on) as (runner, hosts):
        channels, errors = _opened(runner, hosts, command(unit, "", lines, follow=True))
        if not channels:
            raise next(iter(errors.values()))
        for name, error in errors.items():
            say(f"{name}: {error.what}")
        threads = [
            threading.Thread(target=_pass_on, args=(channel, line), daemon=True)
            for channel in channels.values()
        ]
        for thread in threads:
            thread.start()
        try:
            for name, thread in zip(channels, threads, strict=True):
                thread.join()
                say(f"{name}: the connection has ended")
        except KeyboardInterrupt:
            return
        finally:
            for channel in channels.values():
                channel.close()


def _opened(
    runner: Runner, hosts: Iterable[Host], asked: str
) -> tuple[dict[str, Any], dict[str, FlotillaError]]:
    channels: dict[str, Any] = {}
    errors: dict[str, FlotillaError] = {}
    for host in hosts:
        try:
            channels[host.name] = runner.stream(host, asked, sudo=True)
        except FlotillaError as error:
            errors[host.name] = error
    return channels, errors


def _pass_on(channel: Any, line: Say) -> None:
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    rest = ""
    while data := channel.recv(65536):
        *whole, rest = (rest + decode(data)).split("\n")
        for text in whole:
            line(text)

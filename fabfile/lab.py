"""The local EC2: start it, look at it, break it on purpose, and take it away."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from lab import control
from lab.errors import LabError
from lab.layout import layout

_T = TypeVar("_T")
_JSON = {"json": "print one JSON object on stdout and nothing else"}


def _said(text: str) -> None:
    sys.stderr.write(text + "\n")


def _tried(act: Callable[[], _T]) -> _T:
    """Run `act`; an error the lab foresaw becomes its message and exit code."""
    try:
        return act()
    except LabError as error:
        raise Exit(str(error), code=error.exit_code) from error


def _show(answer: Mapping[str, Any], *, json: bool, text: str) -> None:
    sys.stdout.write((jsonlib.dumps(answer) if json else text) + "\n")


@task(help=_JSON)
def up(_: Context, json: bool = False) -> None:
    """Start the lab; on one that is up already, say so.

    Whatever a crash left is cleaned up first. The first start builds the base image (half a
    minute). Exit 0 up, 3 a prerequisite is missing and nothing was changed.
    """
    done = _tried(
        lambda: control.up(layout(), lambda s: _said(f"{s['step']} ... ok {s['seconds']:.1f} s"))
    )
    how = "is up already" if done["already"] else f"is up after {done['seconds']:.1f} s"
    _show(done, json=json, text=f"the lab {how}: {done['endpoint']} ({done['region']})")


@task(help=_JSON)
def down(_: Context, json: bool = False) -> None:
    """Stop the lab and remove all of it; its machine images stay in the cache.

    Works after a crash too. Exit 0 nothing is left.
    """
    found = _tried(lambda: control.down(layout()))
    _show(
        {"leftovers": found},
        json=json,
        text=f"the lab is down{f', {len(found)} leftovers removed' * bool(found)}",
    )


@task(help=_JSON)
def status(_: Context, json: bool = False) -> None:
    """Show the lab's hosts and machine images. Exit 4 when no lab is up."""
    answer = _tried(lambda: control.ask("status"))
    _show(answer, json=json, text=_board(answer))


def _board(answer: Mapping[str, Any]) -> str:
    up_for = f"up {answer['up_seconds']} s"
    lines = [f"{answer['endpoint']}  {answer['region']}  {up_for}  process {answer['pid']}"]
    columns = ("name", "id", "state", "zone", "private_ip", "public_ip", "image")
    rows = [[str(row[column] or "-") for column in columns] for row in answer["instances"]]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [list(columns), *rows]
    ]
    lines += [f"{image['id']}  {image['state']}  {image['name']}" for image in answer["images"]]
    return "\n".join(lines)


@task(positional=["host"], help={"host": "tag Name or instance id"})
def ssh(_: Context, host: str) -> None:
    """Open a root shell in a host from outside, as a serial console would: works when its sshd does
    not.

    To log in as an operator does, over SSH and the bastion: fab fleet.ssh HOST.
    """
    row = _tried(lambda: control.find_host(control.ask("status"), host))
    argv = _tried(lambda: control.shell_argv(row))
    os.execvp(argv[0], argv)  # noqa: S606  replaces this process, so that the terminal is the shell's


@task(positional=["host"], help={"host": "tag Name or instance id"})
def console(_: Context, host: str) -> None:
    """Print what a host printed on its console since it was launched."""
    row = _tried(lambda: control.find_host(control.ask("status"), host))
    sys.stdout.write(_tried(lambda: control.console(row)))


@task(
    positional=["host", "kind"],
    help={
        "host": "tag Name, instance id or zone",
        "kind": "what goes wrong; an unknown kind lists them",
        "args": 'JSON object with what the kind needs, for example \'{"process": "mysqld"}\'',
        **_JSON,
    },
)
def fault(_: Context, host: str, kind: str, args: str = "{}", json: bool = False) -> None:
    """Break something on purpose, until lab.heal or lab.down. Exit 1 for a kind or target there is
    not.
    """
    try:
        given = jsonlib.loads(args)
    except ValueError as error:
        raise Exit(f"--args is not JSON: {error}. Nothing was changed.", code=5) from error
    answer = _tried(lambda: control.ask("fault", {"target": host, "kind": kind, "args": given}))
    _show(answer, json=json, text=jsonlib.dumps(answer, indent=2))


@task(
    optional=["host"], help={"host": "only this host's faults (tag Name or instance id)", **_JSON}
)
def heal(_: Context, host: str | None = None, json: bool = False) -> None:
    """Undo every fault that is in force."""
    answer = _tried(lambda: control.ask("heal", {"target": host}))
    _show(answer, json=json, text=jsonlib.dumps(answer, indent=2))

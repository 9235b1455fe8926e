"""The local EC2: start it, look at it, break it on purpose, and take it away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, attempt, said, show
from flotilla.errors import BadOption
from lab import control
from lab.errors import LabError
from lab.layout import layout

_T = TypeVar("_T")
# Filling a disk copies what is in the directory first.
_SLOWEST_SECONDS = 300.0


def _tried(act: Callable[[], _T], *, json: bool = False) -> _T:
    """Run `act`; an error the lab foresaw becomes its message, its JSON and its exit code."""
    try:
        return act()
    except LabError as error:
        if json:
            show({"error": error.as_dict()}, json=True, text="")
        raise Exit(str(error), code=error.exit_code) from error


@task(help=JSON)
def up(_: Context, json: bool = False) -> None:
    """Start the lab; on one that is up already, say so.

    Whatever a crash left is cleaned up first. The first start builds the base image (half a
    minute). Exit 0 up, 3 a prerequisite is missing and nothing was changed.
    """
    done = _tried(
        lambda: control.up(layout(), lambda s: said(f"{s['step']} ... ok {s['seconds']:.1f} s")),
        json=json,
    )
    how = "is up already" if done["already"] else f"is up after {done['seconds']:.1f} s"
    show(done, json=json, text=f"the lab {how}: {done['endpoint']} ({done['region']})")


@task(help=JSON)
def down(_: Context, json: bool = False) -> None:
    """Stop the lab and remove all of it; its machine images stay in the cache.

    Works after a crash too. Exit 0 nothing is left.
    """
    found = _tried(lambda: control.down(layout()), json=json)
    show(
        {"leftovers": found},
        json=json,
        text=f"the lab is down{f', {len(found)} leftovers removed' * bool(found)}",
    )


@task(help=JSON)
def status(_: Context, json: bool = False) -> None:
    """Show the lab's hosts and machine images. Exit 4 when no lab is up."""
    answer = _tried(lambda: control.ask("status"), json=json)
    show(answer, json=json, text=_board(answer))


def _board(answer: Mapping[str, Any]) -> str:
    up_for = f"up {answer['up_seconds']} s"
    lines = [f"{answer['endpoint']}  {answer['region']}  {up_for}  process {answer['pid']}"]
    columns = ("name", "id", "state", "zone", "private_ip", "public_ip", "image")
    present = [row for row in answer["instances"] if row["state"] != "terminated"]
    rows = [[str(row[column] or "-") for column in columns] for row in present]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [list(columns), *rows]
    ]
    lines += [f"{image['id']}  {image['state']}  {image['name']}" for image in answer["images"]]
    lines += [f"fault: {_fault_line(fault)}" for fault in answer["faults"]]
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
    iterable=["option"],
    help={
        "host": "tag Name or instance id; a zone for kind `zone`, api for the API's own faults",
        "kind": "what goes wrong; an unknown kind lists them",
        "option": "what the kind takes, NAME=VALUE, again for each; an unknown name lists them",
        **JSON,
    },
)
def fault(_: Context, host: str, kind: str, option: list[str], json: bool = False) -> None:
    """Break something on purpose, until lab.heal or lab.down.

    For example: fab lab.fault mysql-1 kill-process --option unit=mysql; fab lab.fault app-2 cut
    --option from=redis-1,redis-2; fab lab.fault eu-central-1a zone; fab lab.fault api slow-api
    --option action=StopInstances --option seconds=30. Exit 5 for a kind, target or option that
    there is not; nothing was changed then.
    """
    args = attempt(lambda: _options(option, again=f"fab lab.fault {host} {kind}"), json=json)
    body = {"target": host, "kind": kind, "args": args}
    answer = _tried(lambda: control.ask("fault", body, timeout=_SLOWEST_SECONDS), json=json)
    show(answer, json=json, text=f"{_fault_line(answer)}\nundo: fab lab.heal")


@task(
    optional=["host"],
    help={"host": "only the faults of this host (tag Name or instance id), zone or api", **JSON},
)
def heal(_: Context, host: str | None = None, json: bool = False) -> None:
    """Undo every fault that is in force. Exit 2 when one could not be undone; it stays listed."""
    answer = _tried(
        lambda: control.ask("heal", {"target": host}, timeout=_SLOWEST_SECONDS), json=json
    )
    lines = [f"healed: {_fault_line(fault)}" for fault in answer["healed"]]
    lines += [f"failed: {_fault_line(fault)}: {fault['error']}" for fault in answer["failed"]]
    show(answer, json=json, text="\n".join(lines) or "there was nothing to heal")
    if answer["failed"]:
        raise Exit(code=2)


def _options(given: list[str], *, again: str) -> dict[str, str]:
    wrong = [option for option in given if "=" not in option]
    if wrong:
        raise BadOption(
            f"--option is {wrong[0]!r}: it must be NAME=VALUE",
            untouched="Nothing was changed",
            next=f"{again} --option NAME=VALUE",
        )
    return dict(option.split("=", 1) for option in given)


def _fault_line(fault: Mapping[str, Any]) -> str:
    if "kind" not in fault:  # thaw answers with what it healed
        return f"thawed {', '.join(healed['host'] for healed in fault['healed']) or 'nothing'}"
    args = " ".join(f"{name}={value}" for name, value in fault["args"].items())
    return " ".join(filter(None, [fault["host"], fault["kind"], args]))

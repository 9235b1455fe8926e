"""What every task needs: talk on stderr, data on stdout, a question before harm, exit codes."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from invoke.exceptions import Exit

from flotilla import files
from flotilla.errors import INTERRUPTED, FlotillaError, Refused, Unreachable

_T = TypeVar("_T")
JSON = {"json": "print one JSON object on stdout and nothing else"}
TAKE_OVER = {"take-over": "take the lock from a run that is known to be dead"}
# The plans that were agreed to. A process runs one command, or several in a row.
_confirmed: list[str] = []
YES = {"yes": "do it without asking; with no terminal and no --yes, only print the plan"}


def said(text: str) -> None:
    """A line for the operator, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def show(data: Mapping[str, Any] | list[Any], *, json: bool, text: str) -> None:
    """The result, on stdout. A reader that has gone takes nothing from what was done."""
    try:
        sys.stdout.write((jsonlib.dumps(data) if json else text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be tried again, and complained about, on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(
            f"the result could not be written to stdout: {error.strerror}. What was done stands.",
            code=1,
        ) from error


def attempt(act: Callable[[], _T], *, json: bool = False) -> _T:
    """Run ``act``; an error we foresaw becomes its message, its JSON and its exit code.

    SIGTERM, and SIGHUP when a terminal goes away, end it like Ctrl-C: what is half-way is called
    off, and locks are given back.
    """
    _end_in_order()
    try:
        return act()
    except FlotillaError as error:
        if isinstance(error, Unreachable) and not error.untouched and not _confirmed:
            # Nothing is changed before the plan was confirmed.
            error.untouched = "Nothing was changed"
        raise ended(error, json=json) from error
    except OSError as error:
        raise ended(files.refused(error), json=json) from error
    except KeyboardInterrupt as error:
        raise Exit("Interrupted.", code=INTERRUPTED) from error


def _end_in_order() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup's choice stands.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)


def ended(error: FlotillaError, *, json: bool) -> Exit:
    """The exit to raise for ``error``, whose JSON is on stdout by then."""
    if json:
        # A stdout that takes nothing does not change what went wrong first.
        with suppress(Exit):
            show({"error": error.as_dict()}, json=True, text="")
    return Exit(str(error), code=error.exit_code)


def typed(task: str, *words: str, **options: object) -> str:
    """The command as one types it, to be typed again: options that are not given are left out."""
    line = ["fab", task, *words]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            line.append(flag)
        elif value is not False and value not in (None, ""):
            line += [flag, str(value)]
    return shlex.join(line)


def confirm(plan: str, *, yes: bool, again: str) -> None:
    """Print the plan and ask. Raises Refused unless the answer, or ``--yes``, is yes."""
    said(plan)
    if not yes:
        _asked(again)
    _confirmed.append(plan)


def _asked(again: str) -> None:
    if not sys.stdin.isatty():
        raise Refused(
            "this was the plan; there is no terminal to ask on",
            untouched="Nothing was changed",
            next=f"{again} --yes",
        )
    sys.stderr.write("Do it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Refused("not confirmed", untouched="Nothing was changed", next=again)

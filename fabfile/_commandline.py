"""A command line that asks for what there is not: one sentence, the next command, exit code 5.

Invoke itself exits with 1 for an unknown task or option, which reads as "our fault", and with a
traceback for ``--lines x``; it calls a task whose option is missing with None, and takes the
``--help`` behind a task as the value of its first argument. Its parser has no hook for any of
these, so two of its methods are wrapped.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import Any

from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.program import Program

from flotilla.errors import BadOption

_set_value = Argument.set_value
_parse_tasks = Program.parse_tasks


def install() -> None:
    """Have the ``fab`` that is loading us refuse as every other command of ours does."""
    Argument.set_value = _checked  # type: ignore[method-assign]
    Program.parse_tasks = _refusing  # type: ignore[method-assign]


def open_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr an empty one.

    Python leaves None there, and the first word to or from the operator would be a traceback.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123


def refusal(error: ParseError, task: str | None = None) -> BadOption:
    """What to say instead of ``error``; ``task`` is the one meant where the error names none."""
    task = getattr(error.context, "name", None) or task
    return BadOption(
        str(error).rstrip("!").replace("<Argument: ", "--").replace(">", ""),
        untouched="Nothing was changed",
        next=f"fab --help {task}" if task else "fab --list",
    )


def _checked(self: Argument, value: Any, cast: bool = True) -> None:
    try:
        _set_value(self, value, cast)
    except ValueError:
        raise ParseError(f"--{self.name} is {value!r}: it must be a whole number") from None


def _refusing(self: Program) -> None:
    try:
        if not _is_for_help(self):
            _parse_tasks(self)
            _demand_options(self)
    except ParseError as error:
        words = [word for word in self.core.unparsed if word in self.collection.task_names]
        refused = refusal(error, words[-1] if words else None)
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": refused.as_dict()}) + "\n")
        raise Exit(str(refused), code=refused.exit_code) from error


def _is_for_help(self: Program) -> bool:
    """Whether it is ``fab TASK --help``, which is then ``fab --help TASK``."""
    words = self.core.unparsed
    if words[1:2] not in (["--help"], ["-h"]) or words[0] not in self.collection.task_names:
        return False
    # Not twice: the second one would have lost what is said of each option.
    self.parser = self._make_parser()
    self.args.help.value = words[0]
    return True


def _demand_options(self: Program) -> None:
    for context in self.tasks:
        wanted = inspect.signature(self.collection[context.name].body).parameters.values()
        for parameter in list(wanted)[1:]:
            argument = context.args.get(parameter.name)
            if parameter.default is parameter.empty and argument and argument.value is None:
                raise ParseError(f"{context.name!r} did not receive --{argument.name}", context)

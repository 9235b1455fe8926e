"""Command lines of our scripts: errors and exit codes as everywhere else."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from flotilla import files
from flotilla.errors import INTERRUPTED, BadOption, FlotillaError


class Parser(argparse.ArgumentParser):
    """argparse with our exit code; 2 would read as "a host failed"."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to ask for help, and exit with 5."""
        self.exit(BadOption.exit_code, f"{self.prog}: {message}\nNext: {self.prog} --help\n")


def at_least(option: str, value: float, least: float) -> None:
    """Raise BadOption for a number that would mean something else, or nothing, on a host."""
    if not least <= value < float("inf"):
        raise BadOption(
            f"{option} is {value:g}: it must be {least:g} or more", untouched="Nothing was changed"
        )


def whole(text: str, least: int, most: int) -> int | None:
    """The number that ``text`` writes in plain digits, None for anything else and out of bounds.

    Python's own ``int`` takes every script's digits, and raises for thousands of them.
    """
    plain = re.fullmatch(r"0*([0-9]{1,9})", text)
    return int(plain[1]) if plain and least <= int(plain[1]) <= most else None


def within(option: str, value: float, least: float, most: float) -> None:
    """Raise BadOption for a number below or above what makes sense."""
    if not least <= value <= most:
        raise BadOption(
            f"{option} is {value:g}: it must be {least:g} to {most:g}",
            untouched="Nothing was changed",
        )


def finish(act: Callable[[], int]) -> int:
    """What ``act`` returns; an error we foresaw becomes its message on stderr and its exit code."""
    try:
        return act()
    except FlotillaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{files.refused(error)}\n")
        return FlotillaError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return INTERRUPTED

"""Command lines of our scripts: a bad option is exit 5, as everywhere else."""

from __future__ import annotations

import argparse
from typing import NoReturn

from flotilla.errors import BadOption


class Parser(argparse.ArgumentParser):
    """argparse with our exit code; 2 would read as "a host failed"."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to ask for help, and exit with 5."""
        self.exit(BadOption.exit_code, f"{self.prog}: {message}\nNext: {self.prog} --help\n")

"""One step of an exchange: written before it is taken and after, and told to the operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flotilla.deploy.journal import Journal
from flotilla.errors import FlotillaError


@dataclass(frozen=True, slots=True)
class Said:
    """One finished step. ``error`` is "" when it worked."""

    name: str
    seconds: float
    error: str = ""


@contextmanager
def journaled(
    journal: Journal, name: str, said: Callable[[Said], None], clock: Callable[[], float]
) -> Iterator[None]:
    """A step called ``name``. What it raises is noted and goes through."""
    journal.write("intent", step=name)
    began = clock()
    try:
        yield
    except FlotillaError as error:
        journal.write("step", step=name, error=error.what)
        said(Said(name, clock() - began, error.what))
        raise
    journal.write("step", step=name, error="")
    said(Said(name, clock() - began))

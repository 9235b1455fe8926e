"""One difference between fleet.yml and AWS, and how to remove it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

Verb = Literal["create", "change", "delete"]

# Of one stage at a time. The API throttles a client that opens dozens of mutating calls at once.
WORKERS = 8


@dataclass(frozen=True, slots=True)
class Change:
    """Something to create, change or delete; ``act`` does it and returns when AWS has accepted it.

    Two changes are the same when their words are: ``act`` is not compared.
    """

    verb: Verb
    kind: str  # "subnet", "security group"
    name: str
    act: Callable[[], None] = field(compare=False, repr=False)
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.kind} {self.name}" + (f" ({self.detail})" if self.detail else "")

    def as_dict(self) -> dict[str, str]:
        """Verb, kind, name and detail, for ``--json``."""
        return {"verb": self.verb, "kind": self.kind, "name": self.name, "detail": self.detail}


# Changes within a stage do not need each other; a stage needs the ones before it.
Stage = Sequence[Change]


def carry_out(stages: Sequence[Stage]) -> None:
    """Act on every change, stage by stage, several at a time within one.

    All changes of a stage are tried even when one fails; the first failure is then raised and no
    later stage begins.
    """
    for stage in stages:
        with ThreadPoolExecutor(WORKERS) as pool:
            attempts = [pool.submit(change.act) for change in stage]
        for attempt in attempts:
            attempt.result()

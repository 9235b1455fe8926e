"""How long a deploy will take: from how long earlier ones took, or from the limits of its steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Deploys that say something about the next one: hosts, releases and load change over time.
RECENT = 5


@dataclass(frozen=True, slots=True)
class Past:
    """One deploy that ended well. ``steps``: by host, its steps in seconds; ``batches`` as made."""

    seconds: float
    batches: Sequence[Sequence[str]]
    steps: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Expected:
    """``seconds`` from ``deploys`` of the past; with none, the most that the limits allow."""

    seconds: float
    deploys: int

    @property
    def text(self) -> str:
        """For people."""
        if self.deploys:
            times = "the last deploy" if self.deploys == 1 else f"the last {self.deploys} deploys"
            return f"about {self.seconds:.0f} s, as {times} took"
        return f"at most {self.seconds:.0f} s by the limits of its steps; none was deployed yet"


def expected(
    past: Sequence[Past], batches: int, *, soak_seconds: float, trials: int, most_seconds: float
) -> Expected:
    """The time for ``batches`` batches. ``past``: newest first.

    The canary is watched ``trials`` times for ``soak_seconds``, every other batch once;
    ``most_seconds`` is what one batch may take by its limits, without that.
    """
    watched = soak_seconds * (trials + batches - 1) if batches else 0.0
    known = [one for one in past if _slowest(one)][:RECENT]
    if not batches or not known:
        return Expected(batches * most_seconds + watched, 0)
    around = statistics.median(max(0.0, one.seconds - _rolled(one)) for one in known)
    each = statistics.median(seconds for one in known for seconds in _slowest(one))
    return Expected(around + batches * each + watched, len(known))


def _slowest(past: Past) -> list[float]:
    """Of each batch, the seconds of its slowest host without being watched."""
    hosts = ({host: _host(past, host) for host in batch} for batch in past.batches)
    return [max(times.values()) for times in hosts if times and all(times.values())]


def _rolled(past: Past) -> float:
    """The seconds that the batches took, watching included."""
    return sum(
        max((sum(past.steps.get(host, {}).values()) for host in batch), default=0.0)
        for batch in past.batches
    )


def _host(past: Past, host: str) -> float:
    return sum(
        seconds for step, seconds in past.steps.get(host, {}).items() if not step.startswith("soak")
    )

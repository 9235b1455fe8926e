"""Rolling deploys: a release gets onto every host and clients do not notice.

``survey`` looks, ``prepare`` makes a plan or refuses, ``run`` carries it out, ``history`` tells
what was done. The decisions are in ``flotilla.rules.deploy`` and ``flotilla.rules.rotation``.
"""

from __future__ import annotations

from flotilla.deploy.journal import Journal, history
from flotilla.deploy.roll import Limits, Roll, Step
from flotilla.deploy.run import Outcome, run
from flotilla.deploy.survey import Survey, connect, prepare
from flotilla.deploy.world import Balancers, World

__all__ = [
    "Balancers",
    "Journal",
    "Limits",
    "Outcome",
    "Roll",
    "Step",
    "Survey",
    "World",
    "connect",
    "history",
    "prepare",
    "run",
]

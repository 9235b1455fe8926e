"""Rolling deploys: a release gets onto every host and clients do not notice.

``planned`` looks and makes a plan or refuses, ``deploy`` carries it out, ``history`` tells what was
done. The decisions are in ``flotilla.rules.deploy`` and ``flotilla.rules.rotation``.
"""

from __future__ import annotations

from flotilla.deploy.journal import Journal, history
from flotilla.deploy.operate import deploy, described, limits, planned
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
    "deploy",
    "described",
    "history",
    "limits",
    "planned",
    "prepare",
    "run",
]

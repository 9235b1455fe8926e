"""Rolling deploys: a release gets onto every host and clients do not notice.

``planned`` looks and makes a plan or refuses, ``deploy`` carries it out, ``resume`` ends one that
was cut off, ``history`` tells what was done. The decisions are in ``flotilla.rules.deploy`` and
``flotilla.rules.rotation``.
"""

from __future__ import annotations

from flotilla.deploy.journal import Journal, history
from flotilla.deploy.limits import Conduct, Limits, conduct, limits
from flotilla.deploy.operate import Interrupted, deploy, planned
from flotilla.deploy.proposal import Proposal, Terms, described
from flotilla.deploy.request import Request, request
from flotilla.deploy.resume import previous, resume
from flotilla.deploy.roll import Roll, Step
from flotilla.deploy.run import Outcome, run
from flotilla.deploy.survey import Survey, connect
from flotilla.deploy.world import Balancers, World
from flotilla.deploy_words import Words

__all__ = [
    "Balancers",
    "Conduct",
    "Interrupted",
    "Journal",
    "Limits",
    "Outcome",
    "Proposal",
    "Request",
    "Roll",
    "Step",
    "Survey",
    "Terms",
    "Words",
    "World",
    "conduct",
    "connect",
    "deploy",
    "described",
    "history",
    "limits",
    "planned",
    "previous",
    "request",
    "resume",
    "run",
]

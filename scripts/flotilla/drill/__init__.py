"""Drills: a run-book is rehearsed with clients at work, and what they saw is its result."""

from __future__ import annotations

from flotilla.drill.deploys import Options, deploys, described

__all__ = ["Options", "deploys", "described"]

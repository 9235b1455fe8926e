"""Which hosts exist: asked of EC2, kept in a snapshot with its age, the same for every tool."""

from __future__ import annotations

from flotilla.inventory.collect import collect
from flotilla.inventory.source import load, max_age
from flotilla.snapshot import Host, Snapshot

__all__ = ["Host", "Snapshot", "collect", "load", "max_age"]

"""Clients that ask at a fixed rate, whatever the answers, and count every request."""

from __future__ import annotations

from flotilla.traffic.background import Background
from flotilla.traffic.load import KINDS, MIX, Load, Options

__all__ = ["KINDS", "MIX", "Background", "Load", "Options"]

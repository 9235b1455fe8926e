"""What the fleet looks like and what is wrong with it: asked of every side at once."""

from __future__ import annotations

from flotilla.status.operate import show, status, watch

__all__ = ["show", "status", "watch"]

"""Replace hosts by hosts of another image, with the promise of a rolling deploy.

What comes next at any moment is decided in ``flotilla.rules.replace`` for the application hosts
and in ``flotilla.rules.replace_pair`` for the load balancers.
"""

from __future__ import annotations

from flotilla.replace.options import Options
from flotilla.replace.outcome import Outcome

__all__ = ["Options", "Outcome"]

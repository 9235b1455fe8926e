"""Change a secret of the fleet while everybody who uses it goes on.

``rotate`` does it, or ends what a killed run began; ``status`` tells every secret's age. The steps
and their invariant are in ``flotilla.rules.secrets``.
"""

from __future__ import annotations

from flotilla.secrets.operate import rotate, status

__all__ = ["rotate", "status"]

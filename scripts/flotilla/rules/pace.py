"""Has a deploy taken too long, as a whole or without any progress?"""

from __future__ import annotations


def why_over(elapsed: float, idle: float, budget: float, progress: float) -> str | None:
    """Why to give up after ``elapsed`` seconds, the last ``idle`` of them without a finished step.

    A deploy that waits for ever holds the lock and leaves two versions in service.
    """
    if elapsed > budget:
        return f"the deploy took longer than {budget:g} s"
    if idle > progress:
        return f"no step was finished in {progress:g} s"
    return None

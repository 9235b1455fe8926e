"""Machine images: bake, check, list, and let go."""

from __future__ import annotations

from flotilla.aws import images as edge
from flotilla.errors import Refused
from flotilla.images import sbom
from flotilla.images.bake import Done, Request, bake, plan
from flotilla.images.keep import State, chosen, drop, find, retest, status, verdicts
from flotilla.images.templates import validate
from flotilla.rules import images as rules
from flotilla.rules.images import Image
from flotilla.settings import Settings

__all__ = [
    "Done",
    "Image",
    "Request",
    "State",
    "bake",
    "chosen",
    "drop",
    "every",
    "find",
    "latest_tested",
    "plan",
    "retest",
    "sbom",
    "status",
    "validate",
    "verdicts",
]


def every(settings: Settings) -> list[Image]:
    """All images of the fleet, newest first."""
    return edge.ours(settings)[::-1]


def latest_tested(settings: Settings, role: str) -> Image:
    """The image that new hosts of ``role`` are launched from. Raises Refused when there is none."""
    image = rules.latest_tested(edge.ours(settings), role)
    if image is None:
        raise Refused(
            f"there is no tested image for {role} in {settings.region}",
            why="hosts are launched only from images that passed their check",
            untouched="Nothing was launched",
            next="fab images.bake",
        )
    return image

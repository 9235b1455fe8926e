"""What an operator may ask for, and which image that is."""

from __future__ import annotations

from dataclasses import dataclass

from flotilla import images
from flotilla.errors import Refused
from flotilla.images import Image
from flotilla.rules import replace as rules
from flotilla.rules.replace import Past
from flotilla.settings import Settings

COMMAND = "fab deploy.image"
ON_REQUEST = "the operator wants the image of before"


@dataclass(frozen=True, slots=True)
class Options:
    """``image`` is an id or a name, None for the newest tested one; ``back`` brings back what a run
    that did not end has replaced; ``come_seconds`` is how long a new host may take to serve;
    ``override_freeze`` is the reason for doing it in a freeze window.
    """

    image: str | None = None
    back: bool = False
    come_seconds: float | None = None
    take_over: bool = False
    reason: str = ""
    override_freeze: str = ""


def chosen(settings: Settings, role: str, options: Options, past: Past | None) -> Image:
    """The image to replace by; a run that goes on with ``past`` keeps that one's.

    Raises Refused for one that may not be launched or is another one, BadOption for none.
    """
    if past is None:
        return admitted(settings, role, options)
    if options.image and images.find(settings, options.image).image_id != past.image_id:
        raise Refused(
            f"{past.id} by {past.by} did not end; it replaces hosts by {past.image_id}",
            why="hosts of a third image would be neither the new ones nor the old ones",
            untouched="Nothing was changed",
            next=f"{COMMAND} --role {role}, which goes on with it, or with --back",
        )
    return images.find(settings, past.image_id)


def admitted(settings: Settings, role: str, options: Options) -> Image:
    """The image to replace by. Raises Refused for one that may not be launched, BadOption."""
    image = (
        images.find(settings, options.image)
        if options.image
        else images.latest_tested(settings, role)
    )
    if why := rules.why_not_image(image, role):
        raise Refused(
            f"{image.name} ({image.image_id}) may not be launched: {why}",
            why="hosts come only from images that passed their check and say what is in them",
            untouched="Nothing was changed",
            next="fab images.list",
        )
    return image

"""Bills of materials of images: made when an image is checked, kept in S3, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flotilla.aws import sboms
from flotilla.errors import FlotillaError, Refused
from flotilla.rules import sbom as rules
from flotilla.rules.images import Image
from flotilla.settings import Settings


def keep(settings: Settings, image: Image, inventory: Mapping[str, Any]) -> str:
    """Keep what was found on a host of ``image``; empty, or why it could not be kept.

    That is no fault of the image: one that passed its check may be needed at once, and
    `fab images.test` keeps it later.
    """
    document = rules.document(
        inventory,
        name=image.name,
        version=image.content_hash,
        made_at=image.created_at,
        properties={
            "flotilla:image_id": image.image_id,
            "flotilla:role": image.role,
            "flotilla:source_image": image.source_image,
            "flotilla:build_id": image.build_id,
            "flotilla:git_commit": image.git_commit,
            "flotilla:git_dirty": str(image.git_dirty).lower(),
        },
    )
    try:
        sboms.put(settings, image.image_id, document)
    except FlotillaError as error:
        return error.what
    return ""


def load(settings: Settings, image: Image) -> dict[str, Any]:
    """The CycloneDX document of an image. Raises Refused when none was kept."""
    document = sboms.get(settings, image.image_id)
    if document is None:
        raise Refused(
            f"no bill of materials was kept of {image.image_id} {image.name}",
            why="it is kept when an image passes its check",
            untouched="Nothing was changed",
            next=f"fab images.test {image.image_id}",
        )
    return document

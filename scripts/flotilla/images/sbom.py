"""Bills of materials of images: made when an image is checked, kept in S3, read back."""

from __future__ import annotations

import json
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
    try:
        document = _document(image, inventory)
        sboms.put(settings, image.image_id, document)
    except FlotillaError as error:
        return error.what
    except (LookupError, ValueError, TypeError) as error:
        return f"none could be made of what was found: {type(error).__name__}: {error}"
    return ""


def _document(image: Image, inventory: Mapping[str, Any]) -> str:
    return rules.document(
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


def load(settings: Settings, image: Image) -> dict[str, Any]:
    """The CycloneDX document of an image. Raises Refused when none was kept, or it is damaged."""
    kept = sboms.get(settings, image.image_id)
    if kept is None:
        raise Refused(
            f"no bill of materials was kept of {image.image_id} {image.name}",
            why="it is kept when an image passes its check",
            untouched="Nothing was changed",
            next=f"fab images.test {image.image_id}",
        )
    try:
        document: dict[str, Any] = json.loads(kept)
        why = rules.objection(document)
    except ValueError as error:
        why = str(error)
    if why:
        raise Refused(
            f"the bill of materials of {image.image_id} {image.name} is damaged: {why}",
            why="what it says of packages cannot be believed, and it is never written over",
            untouched="Nothing was changed",
            next=f"aws s3 rm {sboms.url(settings, image.image_id)},"
            f" then fab images.test {image.image_id}",
        )
    return document

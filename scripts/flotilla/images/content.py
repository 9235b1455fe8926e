"""What goes into an image, as one hash: two images with the same hash are interchangeable.

Counted are the source image, the template, the playbooks, every file of the roles it names, and the
part of fleet.yml that roles may bake in. Packages are not: Debian's security updates arrive on the
hosts by themselves, and a newer base is what ``--force`` and a new source image are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from flotilla.agent.bundle import bundle
from flotilla.errors import FlotillaError
from flotilla.rules.images import BASE, NAMES
from flotilla.settings import Settings

# Part of every bake, whatever the image.
_SHARED = ("playbooks/bake_image.yml", "roles/base/tasks/bake.yml", "roles/base/tasks/seal.yml")
AGENT = "flotilla.agent.access"
_NOT_BAKED = {"README.md", "meta", "molecule", "__pycache__"}
# Sections of fleet.yml that no role bakes: sizes, and what is rendered when a host is configured.
_NOT_BAKED_KEYS = {
    *("tiers", "images", "inventory", "cloudwatch", "lb", "env", "domain", "zones", "deploy"),
}


def fleet(settings: Settings) -> dict[str, Any]:
    """The variable ``fleet`` that roles see while baking: what may end up in an image."""
    values = settings.model_dump(mode="json", exclude=_NOT_BAKED_KEYS)
    aws = values["aws"]
    return values | {"aws": {"instance_endpoint_url": aws["instance_endpoint_url"]}}


def roles(root: Path, image: str) -> list[str]:
    """The roles of an image, as its playbook lists them in ``image_roles``."""
    path = root / "playbooks" / f"image_{image}.yml"
    try:
        plays = yaml.safe_load(path.read_text(encoding="utf-8"))
        return list(plays[0]["vars"]["image_roles"])
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise FlotillaError(f"{path} does not say which roles the image has: {error}") from error


def files(root: Path, image: str) -> list[Path]:
    """Every file that goes into an image, or decides what does; sorted."""
    found = {root / name for name in _SHARED}
    found.add(root / "playbooks" / f"image_{image}.yml")
    for role in roles(root, image):
        found |= set(_tree(root / "roles" / role))
    found |= set(_tree(root / "packer" / image))
    return sorted(found)


def hashes(settings: Settings, source_image: str) -> dict[str, str]:
    """The hash of each image by name; ``source_image`` is the id of the image base is made from."""
    found = {BASE: content_hash(settings, BASE, source_image)}
    for image in NAMES:
        if image != BASE:
            found[image] = content_hash(settings, image, found[BASE])
    return found


def content_hash(settings: Settings, image: str, below: str) -> str:
    """``below``: the source image's id for base, base's hash for all others. 16 hex digits."""
    root = settings.root
    parts: Iterable[tuple[str, bytes]] = [
        ("below", below.encode()),
        ("fleet", json.dumps(fleet(settings), sort_keys=True).encode()),
        *((str(path.relative_to(root)), path.read_bytes()) for path in files(root, image)),
        # Role base packs it from this package.
        *([("agent", bundle(AGENT))] if image == BASE else []),
    ]
    return digest(dict(parts))


def digest(parts: Mapping[str, bytes]) -> str:
    """A hash of names and contents that no shift of bytes between them can keep the same."""
    whole = hashlib.sha256()
    for name, content in sorted(parts.items()):
        for piece in (name.encode(), content):
            whole.update(len(piece).to_bytes(8, "big"))
            whole.update(piece)
    return whole.hexdigest()[:16]


def _tree(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not _NOT_BAKED & set(relative.parts):
            yield path

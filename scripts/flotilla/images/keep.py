"""Show what images there are, try one again, and let old ones go."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flotilla.aws import images as edge
from flotilla.aws import workbench
from flotilla.errors import BadOption, FlotillaError
from flotilla.hosts import keys
from flotilla.images import content, fixes, sbom
from flotilla.images.check import check
from flotilla.options import whole
from flotilla.rules import fixes as fix_rules
from flotilla.rules import images as rules
from flotilla.settings import Settings

# More than anybody keeps; a limit for what is read as a number.
MOST = 10_000


@dataclass(frozen=True, slots=True)
class State:
    """How things stand with one image: ``tested`` is what hosts are launched from now."""

    role: str
    tested: rules.Image | None
    is_current: bool  # made from what the repository holds now
    says: str
    report: fix_rules.Report | None  # None where nothing is tested

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "role": self.role,
            "tested": self.tested.as_dict() if self.tested else None,
            "is_current": self.is_current,
            "says": self.says,
            "known": self.report.as_dict() if self.report else None,
        }


def chosen(names: str | None) -> tuple[str, ...]:
    """The images a comma separated option names, all without one. Raises BadOption."""
    if names is None:
        return rules.NAMES
    wanted = tuple(name.strip() for name in names.split(","))
    unknown = [name for name in wanted if name not in rules.NAMES]
    if unknown:
        raise BadOption(
            f"there is no image {', '.join(map(repr, unknown))}; there are: "
            + ", ".join(rules.NAMES),
            untouched="Nothing was changed",
            next="fab images.status",
        )
    return wanted


def status(
    settings: Settings, *, say: Callable[[str], None], now: datetime | None = None
) -> list[State]:
    """Each image: what hosts are launched from, whether we would still make the same, and what is
    known to be wrong with its packages. ``say`` gets a line before what takes long.
    """
    images = edge.ours(settings)
    hashes = content.hashes(settings, edge.source(settings)["ImageId"])
    steps = {step.role: step for step in rules.plan(rules.NAMES, images, hashes)}
    tested = {role: rules.latest_tested(images, role) for role in rules.NAMES}
    launched = [image for image in tested.values() if image]
    known = _known(settings, launched, say, now or datetime.now(UTC))
    return [
        State(
            role,
            image,
            steps[role].action == "reuse",
            "current" if steps[role].action == "reuse" else steps[role].reason,
            known[image.image_id] if image else None,
        )
        for role, image in tested.items()
    ]


def _known(
    settings: Settings,
    images: Sequence[rules.Image],
    say: Callable[[str], None],
    now: datetime,
) -> dict[str, fix_rules.Report]:
    found, documents = {}, {}
    for image in images:
        try:
            documents[image.image_id] = sbom.load(settings, image)
        except FlotillaError as error:
            found[image.image_id] = fix_rules.unknown(f"{error.what}; next: {error.next}")
    return found | fixes.reports(documents, scratch=settings.scratch, now=now, say=say)


def find(settings: Settings, wanted: str) -> rules.Image:
    """An image by id or name, or the newest of a role, tested or not. Raises BadOption."""
    images = edge.ours(settings)
    for image in reversed(images):
        if wanted in {image.image_id, image.name, image.role}:
            return image
    raise BadOption(
        f"there is no image {wanted!r} of this fleet; {len(images)} exist",
        untouched="Nothing was changed",
        next="fab images.list",
    )


def retest(settings: Settings, image: rules.Image) -> dict[str, Any]:
    """Boot an image and check it, as a bake does; it is Status=tested afterwards.

    Raises HostFailed with every fault; the image is then not launched any more.
    """
    build_id = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{os.urandom(3).hex()}"
    tags = {"Fleet": settings.name, "Env": settings.env, "ManagedBy": "flotilla"}
    public = keys.public(settings)
    with workbench.open_workbench(settings, build_id, public_key=public, tags=tags) as bench:
        named = {"Name": f"test-{image.name}", "Fleet": settings.name, "Purpose": "test"}
        edge.tag(settings, image, Status="baked")
        found = check(settings, bench, image, tags=named)
        edge.tag(settings, image, Status="tested")
    return found


def verdicts(
    settings: Settings, *, keep: str | None = None, now: datetime | None = None
) -> list[rules.Verdict]:
    """Which images to drop and why, of all; ``keep``, as typed, overrules fleet.images.keep."""
    if keep is not None and whole(keep, 1, MOST) is None:
        raise BadOption(
            f"--keep {keep} is not a number of 1 or more",
            why="a role without an image could not be launched",
            untouched="Nothing was changed",
            next="fab images.prune --keep 1",
        )
    return rules.prune(
        edge.ours(settings),
        in_use=edge.in_use(settings),
        keep=settings.images.keep if keep is None else int(keep),
        now=now or datetime.now(UTC),
    )


def drop(settings: Settings, agreed: Sequence[rules.Verdict]) -> list[rules.Image]:
    """Remove what was agreed on, except what has come into use since; what is really gone.

    Images are listed again just before, so that an image launched meanwhile stays.
    """
    still: Collection[str] = edge.in_use(settings)
    gone = [
        verdict.image for verdict in agreed if verdict.drop and verdict.image.image_id not in still
    ]
    for image in gone:
        edge.remove(settings, image)
    left = {image.image_id for image in edge.ours(settings)}
    return [image for image in gone if image.image_id not in left]

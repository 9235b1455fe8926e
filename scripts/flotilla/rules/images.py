"""Decide which images to make, which to launch, which to let go, and whether one is fit for use.

Nothing here talks to AWS: callers pass what they listed and act on the plan they get back.
Invariants: an image that something uses is never dropped, nor is the newest tested one of a role,
whatever their age; an image is reused only when everything that goes into it is the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

BASE = "base"
ROLES = ("mysql", "app", "lb", "redis", "bastion")  # the slowest to bake first
NAMES = (BASE, *ROLES)

# An untested image this young may be in the hands of a bake that is still running.
IN_THE_MAKING = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Image:
    """One machine image of ours; ``status`` is "baked", "tested" or "" and set by its tag."""

    image_id: str
    name: str
    role: str
    state: str  # pending, available, failed...
    status: str
    created_at: datetime
    content_hash: str
    source_image: str
    build_id: str
    git_commit: str
    git_dirty: bool
    root_device: str
    snapshots: tuple[str, ...] = ()

    @property
    def is_tested(self) -> bool:
        """Whether hosts may be launched from it."""
        return self.status == "tested" and self.state == "available"

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, the time in ISO 8601."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {
            "created_at": self.created_at.isoformat(),
            "snapshots": list(self.snapshots),
        }


Action = Literal["reuse", "test", "bake"]


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about one image; ``image`` is the one to reuse or to test, None for a bake."""

    role: str
    action: Action
    reason: str
    image: Image | None = None

    def __str__(self) -> str:
        return f"{self.action} {self.role}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to drop an image, and why or why not."""

    image: Image
    drop: bool
    reason: str

    def __str__(self) -> str:
        return f"{'drop' if self.drop else 'keep'} {self.image.image_id} {self.image.name}: " + (
            self.reason
        )


def latest_tested(images: Iterable[Image], role: str) -> Image | None:
    """The newest image of a role that may be launched; of two of one second, the higher id."""
    tested = [image for image in images if image.role == role and image.is_tested]
    return max(tested, key=_age_key, default=None)


def plan(
    wanted: Collection[str],
    images: Sequence[Image],
    hashes: Mapping[str, str],
    *,
    force: bool = False,
) -> list[Step]:
    """What to do so that a tested image with the wanted content exists for each of ``wanted``.

    ``hashes`` has the hash of what goes into each image. Base comes first, and is part of the plan
    when it was asked for or when an image has to be made from it. ``force`` makes all anew.
    """
    steps = [_step(role, images, hashes[role], force=force) for role in ROLES if role in wanted]
    needs_base = any(step.action == "bake" for step in steps)
    if BASE in wanted or needs_base:
        steps.insert(0, _step(BASE, images, hashes[BASE], force=force and BASE in wanted))
    return steps


def _step(role: str, images: Sequence[Image], content_hash: str, *, force: bool) -> Step:
    if force:
        return Step(role, "bake", "asked for anew")
    same = [
        image
        for image in images
        if image.role == role and image.content_hash == content_hash and image.state == "available"
    ]
    tested = [image for image in same if image.is_tested]
    if tested:
        newest = max(tested, key=_age_key)
        return Step(role, "reuse", f"{newest.image_id} has the same content", newest)
    if same:
        newest = max(same, key=_age_key)
        return Step(role, "test", f"{newest.image_id} was baked and never passed its test", newest)
    return Step(role, "bake", _why_new(role, images))


def _why_new(role: str, images: Sequence[Image]) -> str:
    newest = latest_tested(images, role)
    if newest is None:
        return "there is no tested image of it"
    return f"what goes into it differs from {newest.name}"


def prune(
    images: Sequence[Image], *, in_use: Mapping[str, str], keep: int, now: datetime
) -> list[Verdict]:
    """Rule on every image: newest first within its role.

    ``in_use`` says by image id what uses it ("instance i-1", "launch template app"); ``keep`` is
    how many tested images of a role stay, at least one.
    """
    by_role: dict[str, list[Image]] = defaultdict(list)
    for image in sorted(images, key=_age_key, reverse=True):
        by_role[image.role].append(image)
    verdicts = []
    for role in sorted(by_role):
        rank = 0
        for image in by_role[role]:
            rank += image.is_tested
            verdicts.append(_verdict(image, rank, in_use, max(1, keep), now))
    return verdicts


def _verdict(
    image: Image, rank: int, in_use: Mapping[str, str], keep: int, now: datetime
) -> Verdict:
    """``rank``: how many tested images of the role are as new as this one or newer."""
    kept = _why_kept(image, rank, in_use, keep, now)
    if kept:
        return Verdict(image, drop=False, reason=kept)
    if image.is_tested:
        why = f"{rank - 1} tested images of its role are newer"
    elif image.state != "available":
        why = f"its state is {image.state}"
    else:
        why = "it never passed its test"
    return Verdict(image, drop=True, reason=why)


def _why_kept(
    image: Image, rank: int, in_use: Mapping[str, str], keep: int, now: datetime
) -> str | None:
    if image.image_id in in_use:
        return f"used by {in_use[image.image_id]}"
    if image.is_tested and rank == 1:
        return "the newest tested image of its role"
    if image.is_tested and rank <= keep:
        return f"one of the {keep} newest tested"
    if not image.is_tested and now - image.created_at < IN_THE_MAKING:
        return "younger than 2 hours: it may be under test"
    return None


def _age_key(image: Image) -> tuple[datetime, str]:
    return image.created_at, image.image_id


def faults(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is wrong with a host booted from a new image, as sentences; empty means it is fit.

    ``expected``: ``units`` (name to [enabled, active] as systemctl says, null for "either"),
    ``commands`` (name to argument list), ``absent`` (globs). ``found`` is what
    ``images/facts.py`` printed on that host.
    """
    return [
        *_unit_faults(expected.get("units", {}), found["units"]),
        *(
            f"{name} does not run: {found['commands'].get(name, {}).get('output', 'not tried')}"
            for name in expected.get("commands", {})
            if found["commands"].get(name, {}).get("rc") != 0
        ),
        *(f"{path} must not be in an image" for path in found["present"]),
        *(f"unit {unit} failed" for unit in found["failed_units"]),
        *_identity_faults(found),
    ]


def _unit_faults(
    expected: Mapping[str, Sequence[str | None]], found: Mapping[str, Sequence[str]]
) -> list[str]:
    wrong = []
    for unit, wanted in sorted(expected.items()):
        seen = found.get(unit, ("not-found", "inactive"))
        for want, have in zip(wanted, seen, strict=True):
            if want is not None and want != have:
                wrong.append(f"unit {unit} is {have}, not {want}")
    return wrong


def _identity_faults(found: Mapping[str, Any]) -> list[str]:
    """Whether the host made an identity of its own instead of taking the build host's."""
    sealed = found["image"]
    if not sealed:
        return ["/etc/flotilla/image.json is missing: the image was not sealed"]
    wrong = []
    if found["machine_id_sha256"] == sealed["machine_id_sha256"]:
        wrong.append("the machine id is the build host's")
    if shared := set(found["host_keys"]) & set(sealed["host_keys"]):
        wrong.append(f"SSH host keys were baked in: {', '.join(sorted(shared))}")
    if not found["host_keys"]:
        wrong.append("it has no SSH host keys")
    if len(found["authorized_keys"]) != 1:
        wrong.append(f"{len(found['authorized_keys'])} keys may log in, not the launch key alone")
    return wrong

"""Machine images: bake, check, list, let go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show, typed

if TYPE_CHECKING:
    from flotilla.images import Image, State

_ONLY = {"only": "images, with commas between (default: all): base, app, lb, mysql, redis, bastion"}


@task(help={**_ONLY, "force": "make them anew although nothing changed", **YES, **JSON})
def bake(
    _: Context, only: str | None = None, force: bool = False, yes: bool = False, json: bool = False
) -> None:
    """Make the images whose content changed, boot each one, and mark those that pass as tested.

    Images with the same content are reused. Logs: var/<env>/images/<build>/. Exit 0 all are tested,
    2 a bake or a check failed (images that existed are as they were), 3 nothing was changed.
    """
    import time

    from flotilla import audit, config, images

    settings = attempt(config.load, json=json)
    request = attempt(lambda: images.plan(settings, images.chosen(only), force=force), json=json)
    lines = [str(step) for step in request.steps]
    again = typed("images.bake", only=only, force=force)
    start = time.monotonic()

    def act() -> list[images.Done]:
        if any(step.action != "reuse" for step in request.steps):
            confirm("\n".join(lines), yes=yes, again=again)
        made = images.bake(settings, request, say=said)
        if any(one.action != "reuse" for one in made):
            audit.record(settings, again, "done", images=[one.as_dict() for one in made])
        return made

    made = attempt(act, json=json)
    seconds = time.monotonic() - start
    text = "\n".join(f"{one.role:8} {one.action:6} {one.image_id} {one.name}" for one in made)
    data = {"images": [one.as_dict() for one in made], "seconds": round(seconds, 1)}
    show(data, json=json, text=text)
    fresh = sum(one.action != "reuse" for one in made)
    said(f"{len(made)} images are tested, {fresh} of them new, in {seconds:.1f} s")


@task(name="list", help=JSON)
def list_(_: Context, json: bool = False) -> None:
    """List the fleet's images, newest first."""
    from flotilla import config, images

    found = attempt(lambda: images.every(config.load()), json=json)
    text = _table(found) or "there are no images yet; next: fab images.bake"
    show([image.as_dict() for image in found], json=json, text=text)


@task(help=JSON)
def status(_: Context, json: bool = False) -> None:
    """Show what hosts of each role are launched from, and whether it is what we would make now.

    Below each image: packages with newer versions, and known vulnerabilities; or why that is not
    known. Package lists are fetched again when they are 6 hours old.
    """
    from flotilla import config, images

    found = attempt(lambda: images.status(config.load(), say=said), json=json)
    show([one.as_dict() for one in found], json=json, text="\n".join(_states(found)))
    if not all(one.is_current for one in found):
        said("Next: fab images.bake")


@task(
    help={
        "image": "an id or a name, or a role for its newest image",
        "against": "another image: print what differs from it instead",
        **JSON,
    },
    positional=["image"],
)
def sbom(_: Context, image: str, against: str | None = None, json: bool = False) -> None:
    """Print an image's bill of materials: packages with versions; with --json, CycloneDX 1.6.

    Exit 0 done, 3 none was kept of the image, 5 no such image.
    """
    from flotilla import config, images
    from flotilla.rules import sbom as rules

    settings = attempt(config.load, json=json)

    def read(name: str) -> dict[str, Any]:
        return images.sbom.load(settings, images.find(settings, name))

    document = attempt(lambda: read(image), json=json)
    if against is None:
        text = "\n".join(f"{name} {is_}" for name, is_ in sorted(rules.packages(document).items()))
        show(document, json=json, text=text)
        return
    other = attempt(lambda: read(against), json=json)
    changes = rules.differences(other, document)
    data = [{"package": one.package, "old": one.old, "new": one.new} for one in changes]
    text = "\n".join(map(str, changes)) or "the same packages in the same versions"
    show({"differences": data}, json=json, text=text)


@task(
    name="test",
    help={"image": "an id or a name, or a role for its newest image", **YES, **JSON},
    positional=["image"],
)
def retest(_: Context, image: str, yes: bool = False, json: bool = False) -> None:
    """Boot an image on a host of its own and check it again; hosts are launched only if it passes.

    Exit 0 fit for use, 2 it has faults and is no longer launched, 5 no such image.
    """
    from flotilla import config, images

    settings = attempt(config.load, json=json)
    chosen = attempt(lambda: images.find(settings, image), json=json)

    def act() -> dict[str, Any]:
        confirm(
            f"boot {chosen.image_id} {chosen.name}, check it, terminate the host",
            yes=yes,
            again=typed("images.test", image),
        )
        return images.retest(settings, chosen)

    found = attempt(act, json=json)
    if why := found["sbom_not_kept"]:
        said(f"no bill of materials was kept: {why}")
    data = {"image": chosen.as_dict(), "found": found}
    show(data, json=json, text=f"{chosen.image_id} {chosen.name} is fit for use")


@task(
    help={
        "keep": "newest tested images to keep of each (default: fleet.images.keep)",
        **YES,
        **JSON,
    }
)
def prune(_: Context, keep: str | None = None, yes: bool = False, json: bool = False) -> None:
    """Deregister images that nothing uses, and delete their snapshots.

    Prints every image with the reason to keep or drop it. The newest tested image of a role and
    images in use always stay. Exit 0 done, 3 nothing was changed.
    """
    from flotilla import audit, config, images

    settings = attempt(config.load, json=json)
    verdicts = attempt(lambda: images.verdicts(settings, keep=keep), json=json)
    again = typed("images.prune", keep=keep)

    def act() -> list[Image]:
        if not any(verdict.drop for verdict in verdicts):
            return []
        confirm("\n".join(map(str, verdicts)), yes=yes, again=again)
        gone = images.drop(settings, verdicts)
        audit.record(settings, again, "done", dropped=[image.image_id for image in gone])
        return gone

    gone = attempt(act, json=json)
    data = {
        "verdicts": [
            {"image_id": v.image.image_id, "name": v.image.name, "drop": v.drop, "why": v.reason}
            for v in verdicts
        ],
        "dropped": [image.image_id for image in gone],
    }
    show(data, json=json, text="\n".join(map(str, verdicts)))
    said(f"{len(gone)} of {len(verdicts)} images dropped")


@task(help=JSON)
def validate(_: Context, json: bool = False) -> None:
    """Check the Packer templates of every image, with Packer itself. Asks nothing of AWS.

    Exit 0 all are valid, 1 not, 3 there is no usable Packer.
    """
    from flotilla import environment, images
    from flotilla.errors import FlotillaError

    def act() -> list[str]:
        complaints = images.validate(environment.root())
        if complaints:
            raise FlotillaError("\n".join(complaints), next="packer fmt packer/<image>")
        return complaints

    show(attempt(act, json=json), json=json, text="every template is valid")


def _states(found: Sequence[State]) -> list[str]:
    lines, unknown = [], set()
    for one in found:
        lines.append(f"{one.role:8} {one.tested.image_id if one.tested else '-':22} {one.says}")
        if one.report is None:
            continue
        lines.append(f"         {one.report.fixes}")
        if one.report.flaws.found is None:
            # One reason mostly holds for all of them.
            unknown.add(str(one.report.flaws))
        else:
            lines.append(f"         {one.report.flaws}")
    return lines + sorted(unknown)


def _table(images: Sequence[Image]) -> str:
    return "\n".join(
        f"{one.image_id:22} {one.role:8} {one.status or '-':7} {one.created_at:%Y-%m-%d %H:%M} "
        f"{one.content_hash:16} {one.git_commit[:9]}{'+' if one.git_dirty else ' '} {one.name}"
        for one in images
    )

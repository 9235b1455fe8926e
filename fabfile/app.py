"""Releases of the application: make a version available, list them. No host is touched."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, attempt, said, show


@task(
    help={
        "version": "name of the version; default: the time, as in 20261121-143000",
        "artifact": "a tarball (path or s3:// address) instead of building one",
        **JSON,
    }
)
def release(
    _: Context, version: str | None = None, artifact: str | None = None, json: bool = False
) -> None:
    """Build the application, or take an artifact, and keep it as a version that never changes.

    Next: fab deploy.run --version V. Exit 0 released (or there already, with the same content),
    1 the build failed, 3 the version is taken by other content.
    """
    from datetime import UTC, datetime

    from flotilla import config
    from flotilla.release import publish
    from flotilla.rules.release import default_version

    wanted = default_version(datetime.now(UTC)) if version is None else version
    made = attempt(lambda: publish(config.load(), wanted, artifact=artifact), json=json)
    how = "was released before, with the same content" if made.already else "is released"
    show(made.as_dict(), json=json, text=wanted)
    said(f"{wanted} {how} ({made.release.size_bytes} bytes, sha256 {made.release.sha256[:12]})")
    said(f"Next: fab deploy.run --version {wanted}")


@task(name="list", help=JSON)
def list_(_: Context, json: bool = False) -> None:
    """List the releases, newest first."""
    from flotilla import config
    from flotilla.release import releases

    found = attempt(lambda: releases(config.load()), json=json)
    lines = [
        f"{one.version:24} {one.released_at:%Y-%m-%d %H:%M:%S} {one.size_bytes:>12} "
        f"{one.sha256[:12]} {one.released_by}"
        for one in found
    ]
    text = "\n".join(lines) or "nothing is released yet; next: fab app.release"
    show([one.as_dict() for one in found], json=json, text=text)

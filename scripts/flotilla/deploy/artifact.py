"""Is the release there, and is what S3 has really it? Asked before any host is touched."""

from __future__ import annotations

import json

from flotilla import files
from flotilla.aws.artifacts import Artifacts, Release
from flotilla.errors import BadOption, Refused
from flotilla.rules import release as rules
from flotilla.settings import Settings

_UNTOUCHED = "No host was touched"


def find(settings: Settings, version: str) -> Release:
    """The release to deploy.

    Raises BadOption with those that exist for a version that was never released, Refused for one
    that was deleted.
    """
    store = Artifacts(settings)
    is_name = rules.why_not_a_version(version) is None
    if is_name and (known := store.find(version)):
        return known
    if is_name and (deleted := store.deleted_at(version)):
        raise Refused(
            f"the artifact of release {version} is missing: it was deleted from s3://"
            f"{store.bucket} at {deleted:%Y-%m-%d %H:%M:%S} UTC",
            why="hosts fetch it from there",
            untouched=_UNTOUCHED,
            next=f"fab app.release --version {version}, with the same bytes",
        )
    names = [release.version for release in store.list(newest=10)]
    raise BadOption(
        f"there is no release {version!r}; there are: {', '.join(names) or 'none'}",
        untouched=_UNTOUCHED,
        next=f"fab app.release --version {version}" if not names else "fab app.list",
    )


def demand_whole(settings: Settings, release: Release) -> None:
    """Raise Refused unless the artifact has the checksum it was released with.

    Read once for each content: S3's ETag changes with the bytes, so what was right stays right.
    """
    path = settings.scratch / "artifacts" / "verified.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if release.etag and known.get(release.version) == [release.etag, release.sha256]:
        return
    found = Artifacts(settings).checksum(release.version)
    if found != release.sha256:
        raise Refused(
            f"the artifact of release {release.version} has the checksum {found[:12]} and was "
            f"released with {release.sha256[:12] or 'none'}",
            why="somebody changed it, or it was cut short; hosts would refuse it one by one",
            untouched=_UNTOUCHED,
            next="fab app.release under another version, from the source you trust",
        )
    known[release.version] = [release.etag, release.sha256]
    files.replace(path, json.dumps(known))

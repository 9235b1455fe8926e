"""Make a version of the application available to deploys: build or take it, check it, keep it.

No host is touched. A version never changes once it is released, so that what was tested, what is
deployed and what a rollback brings back are the same bytes.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shlex
import socket
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flotilla.aws.artifacts import Artifacts, Release
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.rules import release as rules
from flotilla.settings import Settings

__all__ = ["Published", "Release", "publish", "releases"]

BUILD_SECONDS = 900
_UNTOUCHED = "Nothing was released"


@dataclass(frozen=True, slots=True)
class Published:
    """A release and whether it was there before, with the same content."""

    release: Release
    already: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return self.release.as_dict() | {"already": self.already}


def releases(settings: Settings) -> list[Release]:
    """The newest 50 releases, newest first."""
    return Artifacts(settings).list()


def publish(settings: Settings, version: str, *, artifact: str | None = None) -> Published:
    """Release ``version`` from ``artifact`` (a path or s3:// address), else as fleet.yml says.

    Raises BadOption for a version that cannot be one, Refused when the version is taken by other
    content or the artifact is no tarball, FlotillaError when the build fails.
    """
    if fault := rules.why_not_a_version(version):
        raise BadOption(f"version {fault}", untouched=_UNTOUCHED, next="fab app.list")
    store = Artifacts(settings)
    tarball = obtain(settings, store, version, artifact)
    sha256 = checksum(tarball)
    demand_tarball(tarball)
    existing = store.find(version)
    put = existing is None and store.put(version, tarball, sha256=sha256, released_by=whoami())
    kept = store.find(version) if existing is None else existing
    if kept is None:
        raise FlotillaError(f"release {version} was uploaded and cannot be read back", next="")
    if fault := rules.why_not_publish(version, sha256, kept.sha256):
        raise Refused(
            fault,
            why="a version that changes cannot be rolled back to",
            untouched=_UNTOUCHED,
            next="fab app.release --version <another one>",
        )
    return Published(kept, already=not put)


def obtain(settings: Settings, store: Artifacts, version: str, artifact: str | None) -> Path:
    """The tarball on this machine: taken, downloaded or built."""
    application = settings.application
    target = settings.scratch / "artifacts" / f"{application.name}-{version}.tar.gz"
    target.parent.mkdir(parents=True, exist_ok=True)
    origin = artifact or (application.artifact or "").replace("{version}", version)
    if origin.startswith("s3://"):
        bucket, _, key = origin.removeprefix("s3://").partition("/")
        if not bucket or not key:
            raise BadOption(
                f"the artifact {origin!r} is no s3://BUCKET/KEY",
                untouched=_UNTOUCHED,
                next="fab app.release --artifact PATH",
            )
        store.fetch(origin, target)
        return target
    if origin:
        return settings.path(origin)
    return build(settings, version, target)


def build(settings: Settings, version: str, target: Path) -> Path:
    """Run fleet.application.build; what it writes goes to our stderr. Raises FlotillaError."""
    template = settings.application.build or ""
    command = [
        word.replace("{version}", version).replace("{output}", str(target))
        for word in shlex.split(template)
    ]
    # The interpreter that runs us first: a build in Python finds the packages we were given.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    target.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            command,
            cwd=settings.root,
            env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _build_failed(template, str(error)) from error
    if done.returncode != 0:
        raise _build_failed(template, f"exit code {done.returncode}")
    if not target.is_file():
        raise _build_failed(template, f"it wrote nothing to {target}")
    return target


def checksum(path: Path) -> str:
    """SHA-256 of a file. Raises Refused when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(
            f"the artifact {path} cannot be read ({error.strerror})",
            untouched=_UNTOUCHED,
            next="fab app.release --artifact PATH",
        ) from error


def demand_tarball(path: Path) -> None:
    """Refuse what the hosts could not unpack: no tarball, an empty one, members outside it."""
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in tar]
    except (tarfile.TarError, OSError, EOFError) as error:
        # The lines that follow are one for each compression that it is not.
        raise _no_tarball(path, str(error).splitlines()[0].rstrip(":")) from error
    if not names:
        raise _no_tarball(path, "it is empty")
    for name in names:
        if name.startswith("/") or ".." in Path(name).parts:
            raise _no_tarball(path, f"it holds {name!r}, which is outside of the release's folder")


def whoami() -> str:
    """Who is at work, for records: user@machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _build_failed(command: str, reason: str) -> FlotillaError:
    return FlotillaError(
        f"building the application failed ({reason}): {command}",
        why="fleet.application.build in fleet.yml is the command",
        untouched=_UNTOUCHED,
        next="run that command by hand, or: fab app.release --artifact PATH",
    )


def _no_tarball(path: Path, reason: str) -> Refused:
    return Refused(
        f"the artifact {path} cannot be deployed: {reason}",
        why="hosts unpack it into a folder of its own",
        untouched=_UNTOUCHED,
        next="tar -czf artifact.tar.gz -C FOLDER .",
    )

"""Releases that are bad on purpose: the sample application with a file exchanged.

For another application, release a bad one by hand and name it: ``--bad VERSION``.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from flotilla import release
from flotilla.errors import Refused
from flotilla.settings import Settings

_ENTRY = "guestbook/wsgi.py"
_ANSWER = """\
import time
from flask import request
from guestbook.web import create
app = create()
BEGUN = time.monotonic()  # one clock for all workers, which share the loaded application
@app.before_request
def spoilt():
    if {when}:
        return "spoilt on purpose\\n", {status}
"""
_HEALTH = '("/healthz", "/readyz", "/version")'
# By fault: the files of the artifact that are exchanged.
CHANGED: Mapping[str, Mapping[str, str]] = {
    # Listens to nobody for 1.5 s, then answers wrongly for as long.
    "slow-boot": {
        _ENTRY: "import time\ntime.sleep(1.5)\n"
        + _ANSWER.format(when="time.monotonic() < BEGUN + 1.5", status=500)
    },
    "never-healthy": {
        _ENTRY: _ANSWER.format(when='request.path in ("/healthz", "/readyz")', status=503)
    },
    "wrong-version": {"VERSION": "something-else\n"},
    # Healthy to whoever asks for health, and of no use to clients.
    "errors-after-soak": {
        _ENTRY: _ANSWER.format(when=f"request.path not in {_HEALTH}", status=500)
    },
}


def publish(settings: Settings, kind: str, good: Path, version: str) -> str:
    """Release ``version``: the artifact ``good``, spoilt for fault ``kind``. Returns ``version``.

    Raises Refused when the artifact is no guestbook.
    """
    target = good.with_name(f"{settings.application.name}-{version}.spoilt.tar.gz")
    # Under its own name first: a host refuses a release that names another version.
    changed_copy(good, target, {"VERSION": f"{version}\n", **CHANGED[kind]})
    return release.publish(settings, version, artifact=str(target)).release.version


def changed_copy(source: Path, target: Path, changed: Mapping[str, str]) -> None:
    """A tarball with the content of some files exchanged. Raises Refused when one is not in it."""
    left = set(changed)
    with tarfile.open(source) as old, tarfile.open(target, "w:gz", compresslevel=1) as new:
        for member in old:
            data = old.extractfile(member)
            if data is None:
                new.addfile(member)
                continue
            content = data.read()
            if member.name in changed:
                content = changed[member.name].encode()
                left.discard(member.name)
            fresh = tarfile.TarInfo(member.name)
            fresh.size, fresh.mode, fresh.mtime = len(content), member.mode, member.mtime
            new.addfile(fresh, io.BytesIO(content))
    if left:
        target.unlink()
        raise Refused(
            f"{source.name} has no {', '.join(sorted(left))}: it cannot be spoilt",
            why="bad releases are made from the sample application",
            untouched="Nothing was released",
            next="release a bad version by hand, then: fab drill.deploy --fault KIND --bad VERSION",
        )

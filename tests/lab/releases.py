"""Releases to deploy in tests: two good ones, and one for everything that a release can do wrong.

Each is the guestbook with a file or two changed. Names are new in every run, because a version
never changes and the sources may have.
"""

from __future__ import annotations

import io
import tarfile
import uuid
from pathlib import Path

from typed import fab

from flotilla.settings import Settings

# How a changed release says no: every path but those that the pattern leaves out.
_ANSWER_500 = """
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
# Longer than the canary's checks and soak: it turns bad when other hosts have it already.
SOUR_SECONDS = 12


def _spoilt(when: str, status: int = 500) -> dict[str, str]:
    return {"guestbook/wsgi.py": _ANSWER_500.format(when=when, status=status)}


_HEALTH = '("/healthz", "/readyz", "/version")'
CHANGED: dict[str, dict[str, str]] = {
    "ends": {"guestbook/wsgi.py": "raise SystemExit('ended on purpose')\n"},
    "lies": {"VERSION": "something else\n"},
    "never": _spoilt('request.path in ("/healthz", "/readyz")', 503),
    # Listens to nobody for 1.5 s, then answers wrongly for as long.
    "slow": {
        "guestbook/wsgi.py": "import time\ntime.sleep(1.5)\n"
        + _ANSWER_500.format(when="time.monotonic() < BEGUN + 1.5", status=500)
    },
    # Healthy to whoever asks for health, and of no use to clients: at once, or after a while.
    "errors": _spoilt(f"request.path not in {_HEALTH}"),
    "sours": _spoilt(
        f"time.monotonic() > BEGUN + {SOUR_SECONDS} and request.path not in {_HEALTH}"
    ),
    # One second well, one second not: never two checks in a row.
    "flaps": _spoilt('request.path == "/healthz" and int(time.time()) % 2', 503),
    "unmigratable": {"guestbook/migrate.py": "raise SystemExit('cannot migrate on purpose')\n"},
    # An answer that never ends, as server-sent events are.
    "streams": {
        "guestbook/wsgi.py": """
import time
from flask import Response
from guestbook.web import create
app = create()
@app.get("/events")
def events():
    def ticks():
        while True:
            yield "data: tick\\n\\n"
            time.sleep(0.2)
    return Response(ticks(), mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})
"""
    },
}


class Releases:
    """Versions by what they are like, released when they are first asked for."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._run = uuid.uuid4().hex[:6]
        self._made: dict[str, str] = {}

    @property
    def a(self) -> str:
        """A good release."""
        return self["a"]

    @property
    def b(self) -> str:
        """Another good release."""
        return self["b"]

    def other(self, version: str | None) -> str:
        """The good release that ``version`` is not."""
        return self.b if version == self.a else self.a

    def fresh(self) -> str:
        """A good release that nobody was given before."""
        return self[f"fresh{len(self._made)}"]

    def __getitem__(self, kind: str) -> str:
        if kind not in self._made:
            name = f"test-{kind}-{self._run}"
            artifact: list[str] = []
            if kind in CHANGED:
                path = self._folder / f"{kind}.tar.gz"
                changed_copy(self._built(self.a), path, {"VERSION": f"{name}\n"} | CHANGED[kind])
                artifact = ["--artifact", str(path)]
            self._made[kind] = str(fab("app.release", "--version", name, *artifact)["version"])
        return self._made[kind]

    def _built(self, version: str) -> Path:
        name = f"{self._settings.application.name}-{version}.tar.gz"
        return self._settings.scratch / "artifacts" / name


def changed_copy(source: Path, target: Path, changed: dict[str, str]) -> None:
    """A tarball with the contents of some files exchanged."""
    with tarfile.open(source) as old, tarfile.open(target, "w:gz", compresslevel=1) as new:
        for member in old:
            data = old.extractfile(member)
            assert data
            content = data.read()
            if member.name in changed:
                content = changed[member.name].encode()
            fresh = tarfile.TarInfo(member.name)
            fresh.size, fresh.mode = len(content), member.mode
            new.addfile(fresh, io.BytesIO(content))

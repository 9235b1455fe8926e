"""Releases to deploy in tests: two good ones, and one for everything that a release can do wrong.

Each is the guestbook with a file or two changed. Names are new in every run, because a version
never changes and the sources may have.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from typed import fab

from flotilla.drill import spoilt
from flotilla.settings import Settings

# A host that has this file is of no use to clients, with the release that looks for it.
SOUR = "/srv/app/shared/sour"
_SPOILT = """
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
_ENTRY = "guestbook/wsgi.py"
_PAGES = 'request.path not in ("/healthz", "/readyz", "/version")'
CHANGED: dict[str, Mapping[str, str]] = {
    **spoilt.CHANGED,
    "ends": {_ENTRY: "raise SystemExit('ended on purpose')\n"},
    # Well until its host is given a file; then of no use to clients, and still healthy.
    "sours": {
        _ENTRY: "from pathlib import Path\n"
        + _SPOILT.format(when=f'Path("{SOUR}").exists() and {_PAGES}', status=500)
    },
    # One second well, one second not: never two checks in a row.
    "flaps": {
        _ENTRY: _SPOILT.format(
            when='request.path == "/healthz" and int(time.time()) % 2', status=503
        )
    },
    "unmigratable": {"guestbook/migrate.py": "raise SystemExit('cannot migrate on purpose')\n"},
    # An answer that never ends, as server-sent events are.
    "streams": {
        _ENTRY: """
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

    def know(self, version: str) -> None:
        """Take a release that stands as the first good one, if what it was built from is here."""
        if self._built(version).is_file():
            self._made.setdefault("a", version)

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
                changed = {"VERSION": f"{name}\n", **CHANGED[kind]}
                spoilt.changed_copy(self._built(self.a), path, changed)
                artifact = ["--artifact", str(path)]
            self._made[kind] = str(fab("app.release", "--version", name, *artifact)["version"])
        return self._made[kind]

    def _built(self, version: str) -> Path:
        name = f"{self._settings.application.name}-{version}.tar.gz"
        return self._settings.scratch / "artifacts" / name

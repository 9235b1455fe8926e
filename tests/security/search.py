"""Runs on a host, as root, or here: where on a machine one of some texts is found.

Given as text to ``python3 -c``, so it needs nothing but the standard library, grep, and whatever
opens the compressed files there are. The order comes on stdin, so no text is ever an argument, and
the answer names slots and places, never a text.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

_OPENERS = {
    b"\x1f\x8b": ["gzip", "-dc"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dcq"],
    b"\xfd7zXZ": ["xz", "-dc"],
    b"BZh": ["bzip2", "-dc"],
}
_CHUNK = 1 << 20
# Packages as they come from mirrors, and their documentation.
_FOREIGN = ("/var/cache/apt/", "/var/lib/apt/", "/usr/share/")

Texts = Mapping[str, Iterable[str]]
Hit = tuple[str, str]  # slot, place


class Finder:
    """``texts``: by slot every form in which its value would be a leak."""

    def __init__(self, texts: Texts) -> None:
        self._forms = [(form.encode(), slot) for slot, forms in texts.items() for form in forms]
        self._longest = max((len(form) for form, _ in self._forms), default=1)

    def slots(self, stream: IO[bytes]) -> set[str]:
        """The slots of which a form is in there, also across two reads."""
        found: set[str] = set()
        tail = b""
        while chunk := stream.read(_CHUNK):
            window = tail + chunk
            found |= {slot for form, slot in self._forms if form in window}
            tail = window[-self._longest :]
        return found

    def files(self, roots: Iterable[str]) -> Iterator[Hit]:
        """In files below these, as they are: grep tells which, and Python what is in them."""
        there = [root for root in roots if Path(root).exists()]
        lines = b"\n".join(form for form, _ in self._forms)
        if not there or not lines:
            return
        listed = subprocess.run(
            ["grep", "-rlaFZ", "--devices=skip", "-f", "/dev/stdin", "--", *there],
            input=lines,
            capture_output=True,
            check=False,
        )
        for name in filter(None, listed.stdout.split(b"\0")):
            with contextlib.suppress(OSError), Path(os.fsdecode(name)).open("rb") as stream:
                yield from ((slot, os.fsdecode(name)) for slot in self.slots(stream))

    def compressed(self, roots: Iterable[str]) -> Iterator[Hit]:
        """In files below these that are compressed; "unread" where nothing here opens one."""
        for path in _walk(roots):
            opener = None
            with contextlib.suppress(OSError), path.open("rb") as stream:
                magic = stream.read(8)
                opener = next((o for start, o in _OPENERS.items() if magic.startswith(start)), None)
            if opener:
                try:
                    yield from ((slot, str(path)) for slot in self.said([*opener, str(path)]))
                except FileNotFoundError:
                    yield "unread", str(path)

    def said(self, argv: list[str]) -> set[str]:
        """In what a program prints."""
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout
            return self.slots(process.stdout)

    def processes(self) -> Iterator[Hit]:
        """In arguments and environments: place is ``environ of NAME``, for numbers change."""
        for folder in Path("/proc").glob("[0-9]*"):
            for kind in ("cmdline", "environ"):
                with contextlib.suppress(OSError), (folder / kind).open("rb") as stream:
                    name = (folder / "comm").read_text().strip()
                    unit = _unit(folder)
                    yield from ((s, f"{kind} of {name} ({unit})") for s in self.slots(stream))


def _unit(folder: Path) -> str:
    """The systemd unit that a process belongs to."""
    words = (folder / "cgroup").read_text().strip().split("/")
    return next((word for word in reversed(words) if word.endswith((".service", ".scope"))), "")


def _walk(roots: Iterable[str]) -> Iterator[Path]:
    for root in roots:
        for folder, _, names in os.walk(root):
            if not f"{folder}/".startswith(_FOREIGN):
                for name in names:
                    path = Path(folder, name)
                    if path.is_file() and not path.is_symlink():
                        yield path


def main() -> None:
    """Do one order: ``texts``, ``roots``, and whether this is a host with processes and journal."""
    order = json.loads(sys.stdin.read())
    finder = Finder(order["texts"])
    found = {*finder.files(order["roots"]), *finder.compressed(order["roots"])}
    if order["host"]:
        found |= set(finder.processes())
        # Long fields are compressed in a journal's files; this is all of them as they were written.
        journal = finder.said(["journalctl", "--output=export", "--no-pager", "--all"])
        found |= {(slot, "journal") for slot in journal}
    json.dump(sorted(found), sys.stdout)


if __name__ == "__main__":
    main()

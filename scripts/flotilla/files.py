"""Write a file so that a reader, or a crash, never meets half of it; say what a disk refused."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from flotilla.errors import FlotillaError


def replace(target: Path, text: str, *, mode: int = 0o600, durable: bool = False) -> Path:
    """Replace ``target`` at once with ``text``, making its folder; returns ``target``.

    A ``durable`` one is whole after a power cut, too: no file system then has the new name of a
    text that never reached the disk.
    A file that holds the text already is left alone, so that commands which only look go on when
    the disk is full or read-only.
    Raises FlotillaError when the disk refuses it; a file that was there is then unchanged.
    """
    if _holds(target, text, mode):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FlotillaError(
            f"could not write {target}: {error.strerror}",
            untouched="The file before it is unchanged" if target.exists() else "",
            next=f"df -h {target.parent}",
        ) from error
    return target


def _holds(target: Path, text: str, mode: int) -> bool:
    try:
        same = stat.S_IMODE(target.stat().st_mode) == mode
        return same and target.read_bytes() == text.encode()
    except OSError:
        return False


def refused(error: OSError) -> FlotillaError:
    """What to raise for a file or folder that the machine would not give us."""
    named = error.filename if isinstance(error.filename, str) else ""
    folder = next((p for p in Path(named).parents if p.is_dir()), Path())
    return FlotillaError(
        f"{named or 'the system'}: {error.strerror or error}",
        why="it is needed for this command",
        next=f"df -h {folder} && ls -ld {folder}",
    )

"""Write a file so that a reader, or a crash, never meets half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from flotilla.errors import FlotillaError


def replace(target: Path, text: str, *, mode: int = 0o600) -> Path:
    """Replace ``target`` at once with ``text``, making its folder; returns ``target``.

    Raises FlotillaError when the disk refuses it; a file that was there is then unchanged.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
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

"""Files are replaced whole, left alone when nothing changes, and named when the machine refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from flotilla import files


def test_a_file_that_holds_the_text_already_is_not_written(tmp_path: Path) -> None:
    path = files.replace(tmp_path / "deep" / "file", "one\n")
    first = path.stat()
    # Not the whole of it: to be read is an access, whose time the file system may keep.
    again = files.replace(path, "one\n").stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert files.replace(path, "two\n").stat().st_ino != first.st_ino
    assert path.read_text() == "two\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_mode_that_somebody_widened_is_put_right(tmp_path: Path) -> None:
    path = files.replace(tmp_path / "file", "one\n")
    path.chmod(0o644)
    assert files.replace(path, "one\n").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_machine_refuses_is_told_with_its_place(tmp_path: Path, number: int) -> None:
    missing = tmp_path / "not" / "there"
    error = files.refused(OSError(number, os.strerror(number), str(missing)))
    assert error.what == f"{missing}: {os.strerror(number)}"
    assert error.next == f"df -h {tmp_path} && ls -ld {tmp_path}"
    assert error.exit_code == 1

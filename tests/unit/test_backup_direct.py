"""Files past the cache: what is written in any pieces is what is read in any others."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flotilla.backup import direct
from flotilla.backup.direct import ALIGN, BLOCK

# A file system of its own kind, which may refuse O_DIRECT.
SHM = Path("/dev/shm")


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    if not SHM.is_dir():
        pytest.skip("this machine has no file system in memory")
    with TemporaryDirectory(dir=SHM) as made:
        yield Path(made)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    size=st.integers(0, 40 * ALIGN) | st.integers(2 * BLOCK, 2 * BLOCK + 3 * ALIGN),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    wanted=st.tuples(st.floats(0, 1), st.floats(0, 1.2)),
)
def test_pieces_of_any_size_written_at_once_make_the_whole(
    folder: Path, size: int, cuts: list[float], wanted: tuple[float, float]
) -> None:
    data = os.urandom(size)
    path = folder / "file"
    path.write_bytes(b"")
    os.truncate(path, size)
    ends = sorted({0, size, *(int(cut * size) for cut in cuts)})
    pieces = list(pairwise(ends))
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda p: direct.write(path, p[0], data[p[0] : p[1]]), pieces):
            pass
    assert path.read_bytes() == data
    at, length = int(wanted[0] * size), int(wanted[1] * size)
    assert direct.read(path, at, length) == data[at : at + length]


def test_a_write_that_stops_short_is_an_error_with_the_file_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * ALIGN))
    monkeypatch.setattr(os, "pwrite", lambda _file, data, _offset: len(data) - 1)
    for size in (10, 2 * ALIGN):
        with pytest.raises(OSError, match=f"{size - 1} of {size} bytes") as caught:
            direct.write(path, 0, bytes(size))
        assert caught.value.filename == str(path)


def test_a_file_system_that_knows_no_other_way_has_it_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * ALIGN))
    asked, system = list[int](), os.open

    def opened(name: Path, flags: int) -> int:
        asked.append(flags & os.O_DIRECT)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument", str(name))
        return system(name, flags)

    monkeypatch.setattr(os, "open", opened)
    data = os.urandom(2 * ALIGN)
    direct.write(path, 7, data)
    assert direct.read(path, 7, len(data)) == data
    assert asked == [os.O_DIRECT, 0] * 2

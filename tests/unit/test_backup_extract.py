"""Where what is got out of a backup goes: refused before the work, and there only when whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flotilla.backup import operate
from flotilla.errors import BadOption, HostFailed, Refused


class Channel:
    """Sends these blocks, then its end; an exception is raised."""

    def __init__(self, blocks: list[bytes | Exception]) -> None:
        self._blocks = blocks

    def settimeout(self, _: float) -> None: ...

    def close(self) -> None: ...

    def recv(self, _: int) -> bytes:
        block = self._blocks.pop(0) if self._blocks else b""
        if isinstance(block, Exception):
            raise block
        return block


def fetched(output: Path, *blocks: bytes | Exception, size: int) -> None:
    stream = lambda *_, **__: Channel(list(blocks))  # noqa: E731
    opened: Any = SimpleNamespace(runner=SimpleNamespace(stream=stream))
    operate._fetched(opened, "mysql-2", "/remote", output, size)


def test_a_folder_that_is_not_there_is_refused_before_anything_is_restored(tmp_path: Path) -> None:
    settings: Any = None
    with pytest.raises(BadOption, match="cannot be written"):
        operate.extract(settings, "guestbook", tmp_path / "no" / "x", to="", gtid="", said=print)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    settings: Any = None
    (tmp_path / "x").write_text("mine")
    with pytest.raises(BadOption, match="exists"):
        operate.extract(settings, "guestbook", tmp_path / "x", to="", gtid="", said=print)
    assert (tmp_path / "x").read_text() == "mine"


def test_what_came_whole_is_the_only_file(tmp_path: Path) -> None:
    fetched(tmp_path / "x", b"ab", b"c", size=3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"abc"}


def test_a_file_that_came_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(Refused, match="meanwhile"):
        fetched(tmp_path / "x", b"abc", size=3)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "mine"}


@pytest.mark.parametrize(
    ("blocks", "error"), [([b"ab"], HostFailed), ([b"ab", TimeoutError("cut")], TimeoutError)]
)
def test_what_did_not_come_whole_leaves_nothing_and_can_be_had_again(
    tmp_path: Path, blocks: list[bytes | Exception], error: type[Exception]
) -> None:
    with pytest.raises(error):
        fetched(tmp_path / "x", *blocks, size=3)
    assert not list(tmp_path.iterdir())
    fetched(tmp_path / "x", b"abc", size=3)
    assert (tmp_path / "x").read_bytes() == b"abc"

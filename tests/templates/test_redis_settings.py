"""Whether a running Redis has a setting as the file says it, however either is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles/redis/files/redis_settings.py"
_spec = importlib.util.spec_from_file_location("redis_settings", SCRIPT)
assert _spec
assert _spec.loader
settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(settings)


@pytest.mark.parametrize(
    ("said", "written", "same"),
    [
        ("67108864", "64mb", True),
        ("67108864", "64MB", True),
        ("64000000", "64m", True),
        ("64000000", "64mb", False),
        ("yes", "yes", True),
        ("", "", True),
        ("10.77.5.1 127.0.0.1", "10.77.5.1 127.0.0.1", True),
        ("10.77.5.1", "10.77.5.1 127.0.0.1", False),
    ],
)
def test_a_value_is_the_same_in_other_units(said: str, written: str, same: bool) -> None:
    assert settings.holds({"name": said}, "name", written) is same


def test_a_setting_that_redis_does_not_know_is_not_held() -> None:
    assert not settings.holds({}, "name", "")


def test_lines_are_read_with_their_quotes_and_without_comments() -> None:
    text = '# a comment\nsave ""\n\nbind a b\nmaxmemory 64mb\n'
    assert settings.owned_lines(text) == [("save", ""), ("bind", "a b"), ("maxmemory", "64mb")]

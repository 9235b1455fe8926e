"""Errors: one clear message, one exit code."""

from __future__ import annotations

import pytest

from flotilla import errors
from flotilla.errors import BadOption, FlotillaError, HostFailed, Refused, Unreachable


@pytest.mark.parametrize(
    ("kind", "code"),
    [(FlotillaError, 1), (HostFailed, 2), (Refused, 3), (Unreachable, 4), (BadOption, 5)],
)
def test_each_kind_has_its_documented_exit_code(kind, code):
    assert errors.exit_code(kind("x")) == code


def test_success_an_interrupt_and_a_bug_have_codes_too():
    assert errors.exit_code(None) == 0
    assert errors.exit_code(KeyboardInterrupt()) == 99
    assert errors.exit_code(ZeroDivisionError()) == 1


def test_a_message_says_what_why_what_is_untouched_and_what_next():
    error = HostFailed(
        "app-3: health check still 503 after 60 s",
        why="a batch ends at its first bad host",
        untouched="app-1 and app-2 serve.",
        next="fab fleet.logs app-3",
    )
    assert str(error) == (
        "app-3: health check still 503 after 60 s. a batch ends at its first bad host. "
        "app-1 and app-2 serve. Next: fab fleet.logs app-3"
    )


def test_parts_that_are_empty_leave_no_trace():
    assert str(Refused("no")) == "no."


def test_a_list_of_faults_is_followed_by_a_line_of_its_own():
    assert str(Refused("2 faults:\n  a\n  b", next="edit")) == "2 faults:\n  a\n  b.\nNext: edit"


def test_programs_get_the_same_parts():
    assert Refused("what", "why", "untouched", "next").as_dict() == {
        "kind": "Refused",
        "exit_code": 3,
        "what": "what",
        "why": "why",
        "untouched": "untouched",
        "next": "next",
    }

"""The audit file: whoever changes it is found out, and several may write at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from fleets import maker
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from flotilla import audit, environment
from flotilla.rules import audit as rules


def chain(count):
    lines = []
    for number in range(count):
        last = lines[-1] if lines else None
        lines.append(rules.linked(last, {"command": f"c{number}"}).encode())
    return lines


@pytest.fixture
def settings(tmp_path):
    with mock_aws():
        yield maker(tmp_path)().settings


@given(st.integers(0, 8))
def test_a_chain_is_whole_and_counts(count):
    lines = chain(count)
    assert rules.faults(lines) == []
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, count + 1))


@given(st.integers(2, 8), st.data())
def test_a_line_that_is_changed_dropped_or_moved_is_found_out(count, data):
    lines = chain(count)
    at = data.draw(st.integers(0, count - 2))
    changed = json.dumps(json.loads(lines[at]) | {"command": "nothing"}).encode()
    assert rules.faults([*lines[:at], changed, *lines[at + 1 :]])
    assert rules.faults([*lines[:at], *lines[at + 1 :]])
    swapped = [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]
    assert rules.faults(swapped)


@given(st.integers(1, 8), st.data())
def test_a_line_put_between_two_others_is_found_out(count, data):
    lines = chain(count)
    at = data.draw(st.integers(0, count - 1))
    forged = rules.linked(lines[at - 1] if at else None, {"command": "forged"}).encode()
    assert rules.faults([*lines[:at], forged, *lines[at:]])


def test_what_was_recorded_can_be_read_back_and_is_whole(settings):
    audit.record(settings, "fab images.bake", "done", images=["ami-1"])
    audit.record(settings, "fab fleet.destroy", "failed", error="no")
    first, second = map(json.loads, audit.lines(settings))
    assert (first["command"], first["images"]) == ("fab images.bake", ["ami-1"])
    assert (second["seq"], second["result"]) == (2, "failed")
    assert audit.faults(settings) == []


def test_a_changed_file_is_named_by_line(settings):
    for number in range(3):
        audit.record(settings, f"command {number}", "done")
    path = settings.scratch / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"command 1", b"command 9"))
    assert audit.faults(settings) == ["line 3 does not follow the line before it"]


def test_a_line_that_a_crash_cut_off_stays_and_is_told(settings):
    audit.record(settings, "one", "done")
    path = settings.scratch / "audit.jsonl"
    with path.open("ab") as file:
        file.write(b'{"seq": 2, "prev')
    audit.record(settings, "three", "done")
    assert len(audit.lines(settings)) == 3
    assert audit.faults(settings) == ["line 2 is cut off or is no JSON"]


def test_nothing_recorded_is_no_fault(settings):
    assert audit.faults(settings) == []


def test_processes_that_write_at_once_make_one_chain(settings):
    settings.scratch.mkdir(parents=True, exist_ok=True)
    path = settings.scratch / "audit.jsonl"
    code = (
        "import sys; from pathlib import Path; from flotilla import audit\n"
        "for n in range(25): audit._append(Path(sys.argv[1]), {'by': sys.argv[2], 'n': n})"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(number)],
            cwd=environment.root() / "scripts",
        )
        for number in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert audit.faults(settings) == []
    assert len(audit.lines(settings)) == 100

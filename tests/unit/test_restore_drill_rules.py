"""Restore drills: which record counts, what differs, when, and what a scratch host is told."""

from __future__ import annotations

import hashlib
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import restore_drill as rules

AT = datetime(2026, 11, 21, 5, 0, 7, tzinfo=UTC)


@given(st.lists(st.integers(1_500_000_000, 3_800_000_000), max_size=5))
def test_the_newest_record_is_found_among_whatever_else_lies_there(seconds):
    times = [datetime.fromtimestamp(one, UTC) for one in seconds]
    keys = [rules.record_key(rules.stamp(at)) for at in times]
    others = [f"{rules.WORK}20991231T000000Z/order.json", f"{rules.WORK}{'a' * 64}.zip", "x"]
    found = rules.newest([*others, *keys])
    if not times:
        assert found is None
    else:
        assert found == (max(keys), max(times))


sums = st.dictionaries(st.sampled_from("abcde"), st.one_of(st.none(), st.integers(0, 3)))


@given(sums, sums)
def test_tables_are_the_same_only_if_both_sides_read_the_same(held, restored):
    wrong = rules.differ(held, restored)
    for name in {*held, *restored}:
        same = held.get(name) is not None and held.get(name) == restored.get(name)
        assert (name in wrong) is not same
    assert wrong == sorted(wrong)


@given(
    oldest=st.floats(0, 1e9),
    last=st.one_of(st.none(), st.floats(0, 1e9)),
    now=st.floats(0, 1e9),
    share=st.floats(0, 1),
)
def test_a_moment_is_after_the_oldest_backup_and_the_last_drill(oldest, last, now, share):
    found = rules.moment(oldest, last, now, lambda a, b: a + share * (b - a))
    least = max(oldest + 1, last or 0)
    assert found >= int(least * 1e6)
    assert found <= max(least, now - 1) * 1e6


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"exact": True, "differ": []}, ""),
        ({"exact": False, "differ": ["`a`.`b`"]}, "`a`.`b`"),
        ({"exact": False, "error": "no way"}, "failed: no way"),
        ({}, "not exact"),
    ],
)
def test_a_record_says_what_was_wrong(record, says):
    found = rules.drilled(AT, record)
    assert found.at == AT.timestamp()
    assert says in found.wrong
    assert bool(found.wrong) is bool(says)


def boot(folder: Path, tool: bytes, digest: str) -> tuple[str, int]:
    """Run a scratch host's user data with programs that only say how they were called."""
    text = rules.user_data(
        bucket="b-backups",
        digest=digest,
        fleet="shop",
        env="blue",
        drill="20261121T050007Z",
        namespace="Acme",
        seconds=60,
    )
    (folder / "aws.env").write_text("AWS_REGION=eu-central-1\n")
    (folder / "content").write_bytes(tool)
    programs = {
        "systemctl": 'echo "systemctl $*"',
        "timeout": 'shift; echo "$PYTHONPATH $AWS_REGION"; echo "run $*"; exit 1',
        "python3": f'echo "fetch $3 $4"; cp {folder}/content "$5"',
    }
    for name, body in programs.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    text = text.replace("/etc/flotilla/aws.env", str(folder / "aws.env"))
    text = text.replace("/run/flotilla-restore.zip", str(folder / "tool.zip"))
    done = subprocess.run(
        ["/bin/sh", "-c", text],
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, done.returncode


def test_a_scratch_host_runs_the_tool_it_was_given_and_powers_off_whatever_came(tmp_path):
    tool = b"a tool"
    said, code = boot(tmp_path, tool, hashlib.sha256(tool).hexdigest())
    lines = said.splitlines()
    assert lines[0] == f"fetch b-backups mysql/drill/work/{hashlib.sha256(tool).hexdigest()}.zip"
    assert lines[1] == f"{tmp_path}/tool.zip eu-central-1"
    assert lines[2] == (
        "run python3 -m flotilla.agent.backup --fleet shop --env blue --host restore "
        "--namespace Acme scratch --drill 20261121T050007Z"
    )
    assert lines[-1] == "systemctl poweroff"
    assert code == 1


def test_a_tool_that_is_not_what_was_sent_is_not_run(tmp_path):
    said, code = boot(tmp_path, b"another tool", hashlib.sha256(b"a tool").hexdigest())
    assert "run " not in said
    assert said.splitlines()[-1] == "systemctl poweroff"
    assert code != 0

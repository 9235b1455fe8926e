"""The audit file: whoever changes it is found out, and several may write at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import requests
from fleets import maker
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws
from moto.server import ThreadedMotoServer

from flotilla import audit, environment
from flotilla.aws.session import client
from flotilla.errors import FlotillaError
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


# -- the copy in S3 --------------------------------------------------------------------------------


@pytest.fixture
def account(tmp_path):
    """An API that several processes can ask, and an audit bucket in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # The API's state is this process's, also that of the test before.
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)
    base = maker(tmp_path)().settings
    aws = base.aws.model_copy(update={"endpoint_url": f"http://{host}:{port}"})
    made = base.model_copy(update={"aws": aws}).placed(tmp_path, "")
    client(made, "s3").create_bucket(
        Bucket=made.name_of("audit"),
        CreateBucketConfiguration={"LocationConstraint": made.region},
    )
    yield made
    server.stop()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def objects(settings) -> dict[str, bytes]:
    s3, bucket = client(settings, "s3"), settings.name_of("audit")
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]
    return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def test_commands_that_end_at_once_leave_the_same_chain_here_and_in_s3(account):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from fleets import maker; from flotilla import audit\n"
        "base = maker(Path(sys.argv[2]))().settings\n"
        "aws = base.aws.model_copy(update={'endpoint_url': sys.argv[3]})\n"
        "made = base.model_copy(update={'aws': aws}).placed(Path(sys.argv[2]), '')\n"
        "for n in range(5): audit.record(made, f'fab fleet.run {n}', 'done')\n"
    )
    tests = str(environment.root() / "tests" / "unit")
    root, endpoint = str(account.root), account.aws.endpoint_url
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, tests, root, endpoint],
            cwd=environment.root() / "scripts",
        )
        for _ in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0] * 3
    assert audit.faults(account) == []
    assert audit.differences(account) == []
    kept = objects(account)
    assert [kept[key] for key in sorted(kept)] == audit.lines(account)
    assert len(kept) == 15


def test_a_line_that_s3_did_not_take_is_told_of_and_sent_with_the_next_one(account, capsys):
    audit.record(account, "one", "done")
    away = account.aws.model_copy(update={"endpoint_url": "http://127.0.0.1:1"})
    audit.record(account.model_copy(update={"aws": away}).placed(account.root, ""), "two", "done")
    said = capsys.readouterr()
    assert said.out == ""
    assert "goes to S3 with the next one: could not keep the audit line" in said.err
    assert audit.differences(account) == ["line 2 is not in the bucket"]
    audit.record(account, "three", "done")
    assert audit.differences(account) == []
    assert len(objects(account)) == 3


def test_a_file_whose_last_line_was_dropped_is_found_out_by_the_bucket(account):
    for number in range(3):
        audit.record(account, f"command {number}", "done")
    path = account.scratch / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert audit.faults(account) == [], "the chain alone cannot know"
    assert audit.differences(account) == ["line 3 is in the bucket and not in the file"]


def test_a_line_in_the_bucket_is_never_replaced(account):
    audit.record(account, "one", "done")
    (key,) = objects(account)
    (account.scratch / "audit.sent").unlink()
    path = account.scratch / "audit.jsonl"
    before = objects(account)
    client(account, "s3").put_object(
        Bucket=account.name_of("audit"), Key=key.replace("00000001", "00000002"), Body=b"forged"
    )
    with pytest.raises(FlotillaError, match="holds another audit line"):
        audit.record(account, "two", "done")
    assert objects(account)[key] == before[key]
    assert len(path.read_bytes().splitlines()) == 2, "what was done is on this machine all the same"
    assert audit.differences(account) == ["line 2 is another one in the bucket"]


def test_two_machines_have_two_chains_in_one_bucket(account, tmp_path):
    other = account.placed(tmp_path / "another", "")
    audit.record(account, "here", "done")
    audit.record(other, "there", "done")
    audit.record(account, "here again", "done")
    assert len({key.partition("/")[0] for key in objects(account)}) == 2
    assert audit.differences(account) == []
    assert audit.differences(other) == []


@given(st.integers(1, 8), st.data())
def test_a_copy_that_differs_anywhere_is_found_out(count, data):
    lines = chain(count)
    copy = dict(enumerate(lines, 1))
    assert rules.differences(lines, copy) == []
    at = data.draw(st.integers(1, count))
    assert rules.differences(lines, copy | {at: b"forged"}) != []
    assert rules.differences(lines[: at - 1], copy) != []
    missing = {number: line for number, line in copy.items() if number != at}
    older = missing and at < min(missing)
    assert bool(rules.differences(lines, missing)) is not bool(older)

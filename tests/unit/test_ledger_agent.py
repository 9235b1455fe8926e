"""Writers that go on alone: as processes of their own, here without a server to write to."""

from __future__ import annotations

import os
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flotilla.agent.ledger import Book
from flotilla.agent.ledger_mysql import Order
from flotilla.errors import HostFailed
from flotilla.ledger import Ledger, entries
from flotilla.rules import authority
from flotilla.rules.ledger import Entry, Fate

AUTHORITY = authority.root("shop", "lab", authority.new_key(), datetime.now(UTC)).public()
# Nobody listens there: every try fails at the door, which is an entry as well.
NOBODY = Order(
    authority=AUTHORITY,
    run="r1",
    port=1,
    user="u",
    password="not in any argument",
    database="d",
    table="t",
    writers=2,
    pause_seconds=0.02,
    limit_seconds=60.0,
    label="here",
    is_probe=True,
)


class Shell:
    """Runs the ledger's commands on this machine, as SSH would on a host."""

    def __init__(self) -> None:
        self.folder = Path()

    def __call__(self, command: str, stdin: str, seconds: float) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.stdout.startswith("/var/tmp/"):
            self.folder = Path(done.stdout.splitlines()[0])
        if done.returncode:
            raise HostFailed(done.stderr.strip().splitlines()[-1])
        return done.stdout


@pytest.fixture
def shell() -> Iterator[Shell]:
    made = Shell()
    yield made
    assert not made.folder.name or not made.folder.exists(), "something was left behind"


def until(what, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def lines(shell: Shell) -> int:
    return len((shell.folder / "entries").read_text().splitlines())


def test_writers_go_on_when_whoever_started_them_is_gone(shell):
    with Ledger("here", shell, NOBODY) as ledger:
        until(lambda: lines(shell) > 4)
        before = lines(shell)
        until(lambda: lines(shell) > before)
        told = ledger.stop()
    assert len(told) >= before
    assert {one.fate for one in told} == {Fate.FAILED}
    assert {one.id.rpartition("-")[0] for one in told} == {"r1-here.0", "r1-here.1"}
    assert len({one.id for one in told}) == len(told)
    assert ledger.stop() == told, "it may be asked for again"


def test_what_a_writer_saw_is_there_though_its_process_was_killed(shell):
    with Ledger("here", shell, NOBODY) as ledger:
        until(lambda: lines(shell) > 4)
        os.kill(int((shell.folder / "pid").read_text()), 9)
        began = time.monotonic()
        assert len(ledger.stop()) >= 4
        assert time.monotonic() - began < 9, "nobody waits for who is dead"


def test_writers_whom_nobody_wants_any_more_end(shell):
    """Whoever started them takes their folder away when it goes wrong, and waits for nothing."""
    with Ledger("here", shell, NOBODY):
        pid = int((shell.folder / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists(), 15.0)


def test_what_a_full_disk_refused_is_written_when_there_is_room(tmp_path):
    """No entry twice, none in halves."""

    class Full:
        def __init__(self, room):
            self.room, self.text = room, b""

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            taken = data[: self.room]
            self.text, self.room = self.text + taken, self.room - len(taken)
            return len(taken)

    book = Book(tmp_path / "entries")
    book._file = disk = Full(room=50)
    told = [Entry(f"r-a.0-{number}", 1.0, 1.5, Fate.ACKED) for number in range(5)]
    for entry in told:
        book.add(entry)
    with pytest.raises(OSError, match="No space"):
        book.flush()
    disk.room = 10_000
    book.flush()
    assert list(entries(disk.text.decode())) == told


def test_a_password_is_in_no_argument(shell):
    with Ledger("here", shell, NOBODY):
        pid = int((shell.folder / "pid").read_text())
        assert NOBODY.password not in Path(f"/proc/{pid}/cmdline").read_text()
        assert NOBODY.password.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_table_that_cannot_be_made_is_an_error_and_leaves_nothing(shell):
    order = replace(NOBODY, is_probe=False)
    with pytest.raises(HostFailed, match="2003"), Ledger("here", shell, order):
        pass
    assert shell.folder.name
    assert not shell.folder.exists()


class Hangs(socketserver.BaseRequestHandler):
    """A proxy that still leads to a server which has given its role away."""

    def handle(self) -> None:
        self.server.asked += 1


def test_a_server_that_hangs_up_is_asked_again(shell):
    """For as long as a proxy may take to follow a switchover; then it is an error after all."""
    with socketserver.TCPServer(("127.0.0.1", 0), Hangs) as server:
        server.asked = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        order = replace(NOBODY, is_probe=False, port=port, host="127.0.0.1")
        with pytest.raises(HostFailed, match="Lost connection"), Ledger("here", shell, order):
            pass
        server.shutdown()
        assert server.asked > 5


def test_a_line_that_was_cut_off_is_no_entry():
    text = '["r-a.0-1", 1.0, 1.5, "acked", "", "uuid"]\n["r-a.0-2", 1.6, 1.'
    (found,) = entries(text)
    assert (found.id, found.fate, found.server) == ("r-a.0-1", Fate.ACKED, "uuid")

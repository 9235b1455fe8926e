"""MySQL's certificate when files are damaged, the disk is full, or the server lets nobody in.

With real servers: tests/mysqld/test_tls.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
from test_authority import NOW, ROLES, put, tool
from test_tls_leaf import DAMAGED

sys.path.insert(0, str(ROLES / "mysql" / "files"))

import mysql_tls

_FORK = multiprocessing.get_context("fork")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    put(folder)
    assert tool.renew(folder, NOW) == 0
    return folder


@pytest.fixture
def served(tmp_path: Path, home: Path) -> Path:
    path = tmp_path / "tls" / "server.pem"
    assert mysql_tls.put(home, path)
    return path


BROKEN = [
    *(("leaf.pem", kind) for kind in DAMAGED),
    *(("authority.pem", kind) for kind in ("empty", "junk", "half")),
    *(("tls.json", kind) for kind in ("empty", "junk", "half")),
]


@pytest.mark.parametrize(("file", "kind"), BROKEN)
def test_what_is_damaged_never_gets_where_the_server_reads(
    home: Path, served: Path, file: str, kind: str
) -> None:
    """mysqld that starts with half of a pair starts without TLS, and no client comes in."""
    before = served.read_bytes()
    (home / file).write_bytes(DAMAGED[kind]((home / file).read_bytes()))
    with pytest.raises(mysql_tls.TlsError, match=r"server\.pem is as it was"):
        mysql_tls.put(home, served)
    assert served.read_bytes() == before


def test_permissions_that_somebody_changed_come_back(home: Path, served: Path) -> None:
    served.chmod(0o600)
    assert not mysql_tls.put(home, served)
    assert served.stat().st_mode & 0o777 == 0o640


def test_a_run_that_was_killed_leaves_no_key_beside_it(home: Path, served: Path) -> None:
    before = served.read_bytes()
    (home / "leaf.pem").unlink()
    assert tool.renew(home, NOW) == 0

    def run() -> None:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        mysql_tls.put(home, served)

    child = _FORK.Process(target=run)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert served.read_bytes() == before
    assert mysql_tls.put(home, served)
    assert [one.name for one in served.parent.iterdir()] == ["server.pem"]


def test_a_server_that_refuses_root_is_told_of_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer instead of a greeting, as MySQL has it when there are too many connections."""
    said = b"\xff" + (1040).to_bytes(2, "little") + b"Too many connections"
    path = tmp_path / "mysqld.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(len(said).to_bytes(3, "little") + b"\0" + said)

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setattr(mysql_tls.connected, "__defaults__", (str(path),))
        assert mysql_tls.main(["status"]) == 1
        thread.join()
    told = capsys.readouterr().err
    assert told.startswith("MySQL lets root not in")
    assert "Too many connections" in told

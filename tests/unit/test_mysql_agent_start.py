"""The watcher's own process, on a host that was not configured to its end."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ports import free_port

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
WAIT_SECONDS = 30
# Twice as long as it waits before it tries anything again.
QUIET_SECONDS = 4


def test_a_host_that_knows_no_region_says_so_once_and_is_nobodys_primary(tmp_path: Path) -> None:
    port = free_port()
    options = ["--fleet=f", "--env=e", "--address=127.0.0.1", f"--port={port}", "--authority=/x"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "PYTHONPATH": str(SCRIPTS),
        "STATE_DIRECTORY": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "flotilla.agent.mysql", *options],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stderr.readline()
        assert said.startswith("AWS_REGION is not set"), said
        assert "next: fab fleet.configure --limit mysql" in said
        assert _primary(port) == 503
        heard = ""
        ends = time.monotonic() + QUIET_SECONDS
        while (left := ends - time.monotonic()) > 0:
            if select.select([process.stderr], [], [], left)[0]:
                heard += os.read(process.stderr.fileno(), 65536).decode()
        assert "Traceback" not in heard
        assert "AWS_REGION" not in heard
    finally:
        process.kill()
        process.wait(WAIT_SECONDS)
        process.stderr.close()


def _primary(port: int) -> int:
    """The status of the endpoint's answer, once it listens."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/primary", timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            if time.monotonic() > deadline:
                pytest.fail("it does not listen")
            time.sleep(0.05)

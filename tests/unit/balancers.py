"""A real HAProxy of this machine's own, with web servers behind it that can be made unfit."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flotilla.discovery.balancer import Places
from flotilla.errors import FlotillaError
from flotilla.hosts.haproxy import Runtime, local
from flotilla.rules import haproxy_file

REPOSITORY = Path(__file__).resolve().parents[2]
RELOAD = REPOSITORY / "roles/haproxy/files/haproxy_reload.py"
PORT = 18480

OPTIONS = "check inter 200ms fastinter 100ms downinter 100ms fall 2 rise 2 weight 100 maxconn 50"
CONFIGURATION = """global
    stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
    server-state-file {folder}/state
    # Longer than the slowest machine takes from a reload to a client's next request.
    hard-stop-after 60s

defaults
    mode http
    option redispatch 1
    load-server-state-from-file global
    timeout connect 1s
    timeout client 60s
    timeout server 5s

frontend edge
    bind 127.0.0.1:{listen}
    option idle-close-on-response
    default_backend app

backend app
    balance random(2)
    option httpchk
    http-check send meth GET uri /healthz
    http-check expect status 200
{more}    default-server {options}
{begin}
{end}
{rest}"""


def until(what: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The first true answer; fails the test when there is none in time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return found


class Web:
    """A web server at ``address``; ``fit`` is what its health page says, ``served`` who came."""

    def __init__(self, address: str) -> None:
        self.address, self.fit, self.served = address, True, 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                health = self.path == "/healthz"
                web.served += not health
                self.send_response(200 if web.fit else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """HAProxy resets the connection of a check; that is no error here."""

        self._server = Server((address, PORT), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Edge:
    """A running HAProxy: ``runtime`` to ask it, ``places`` of its files."""

    def __init__(self, folder: Path, *, listen: int, more: str = "", end: str = "") -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{listen}/"
        self.places = Places(
            config=folder / "haproxy.cfg",
            states=folder / "haproxy.states",
            check=("haproxy", "-c", "-q", "-f"),
            reload=(sys.executable, str(self._script())),
        )
        self.places.config.write_text(
            CONFIGURATION.format(
                folder=folder,
                listen=listen,
                more=more,
                options=OPTIONS,
                begin=haproxy_file.BEGIN,
                end=haproxy_file.END,
                rest=end,
            )
        )
        self.runtime = Runtime("haproxy", local(folder / "admin.sock"))
        self._process: subprocess.Popen[bytes] | None = None

    def _script(self) -> Path:
        """The role's own script, with the paths of this HAProxy."""
        text = RELOAD.read_text()
        for old, new in {
            "/run/haproxy-master.sock": "master.sock",
            "/var/lib/haproxy/state": "state",
            "/etc/haproxy/haproxy.cfg": "haproxy.cfg",
            "/var/lib/flotilla/haproxy.states": "haproxy.states",
        }.items():
            assert text.count(f'"{old}"') == 1
            text = text.replace(old, str(self.folder / new))
        script = self.folder / "haproxy_reload.py"
        script.write_text(text)
        return script

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.places.reload, *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    def start(self, *, max_age: float = 900) -> str:
        """As the unit does; what the preparation said."""
        said = self.script("--start", "--max-age", str(max_age)).stderr
        self._process = subprocess.Popen(
            ["haproxy", "-Ws", "-S", self.folder / "master.sock", "-f", self.places.config],
            stderr=(self.folder / "log").open("ab"),
        )
        until(lambda: (self.folder / "admin.sock").exists() and self._answers())
        self.script("--started")
        return said

    def _answers(self) -> bool:
        try:
            return bool(self.runtime.info())
        except FlotillaError:
            return False

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        # The worker goes when its master is gone; the sockets stay behind.
        until(lambda: not self._answers())
        (self.folder / "admin.sock").unlink(missing_ok=True)

    def stop(self) -> None:
        if self._process:
            self.script("--stop")
            self._process.terminate()
            self._process.wait(10)
        (self.folder / "admin.sock").unlink(missing_ok=True)

    def statuses(self) -> Mapping[str, str]:
        return {name: server.status for name, server in self.runtime.servers().items()}

    def configured(self) -> dict[str, str]:
        return haproxy_file.servers(self.places.config.read_text())


@contextmanager
def edge(folder: Path, *, listen: int, more: str = "", end: str = "") -> Iterator[Edge]:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here")
    made = Edge(folder, listen=listen, more=more, end=end)
    made.start()
    try:
        yield made
    finally:
        made.kill()

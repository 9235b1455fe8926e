"""HAProxy as role haproxy has it on a load balancer, on loopback, with two servers behind it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from templates.conftest import render_template
from unit.ports import free_port

from flotilla.wait import until

SERVERS = {"app-1": "127.0.70.1", "app-2": "127.0.70.2"}
_ACCOUNTS = re.compile(r" user haproxy group haproxy|^    (user|group) haproxy\n", re.MULTILINE)
_APPLICATION = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = (self.headers.get("X-Forwarded-For", "") + "\\n").encode() + b"page " * 400
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_HEAD = do_GET
    def log_message(self, *_):
        pass

ThreadingHTTPServer.request_queue_size = 1024
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), App).serve_forever()
"""


@dataclass(frozen=True, slots=True)
class Edge:
    """Where clients reach it."""

    host: str
    port: int
    # What has to come first on every connection.
    greeting: bytes = b""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def connected(self, source: str = "127.0.71.1", seconds: float = 10.0) -> socket.socket:
        """A connection from an address."""
        return socket.create_connection((self.host, self.port), seconds, (source, 0))


@contextmanager
def running(folder: Path, **variables: object) -> Iterator[Edge]:
    """A load balancer and its servers, ended afterwards. ``variables`` are the role's.

    Clients are at other addresses of loopback than 127.0.0.1, which is exempt from limits; so here
    it is that address alone.
    """
    port, behind, stats = free_port(), free_port(), free_port()
    text = render_template(
        *("haproxy", "haproxy.cfg.j2"),
        host="lb-1",
        haproxy_edge_servers=SERVERS,
        haproxy_edge_server_port=behind,
        haproxy_edge_peers={},
        haproxy_stats_address="127.0.0.1",
        haproxy_stats_port=stats,
        **variables,
    )
    page = folder / "503.http"
    page.write_text(render_template("haproxy", "503.http.j2", host="lb-1"))
    text = _ACCOUNTS.sub("", text)
    text = text.replace("/etc/haproxy/errors/flotilla-503.http", str(page))
    text = text.replace("bind :80", f"bind 127.0.70.10:{port}")
    text = text.replace("/run/haproxy/admin.sock", str(folder / "admin.sock"))
    text = text.replace("    chroot /var/lib/haproxy\n", "")
    text = text.replace("127.0.0.0/8", "127.0.0.1")
    path = folder / "haproxy.cfg"
    path.write_text(text)
    proxied = b"PROXY TCP4 127.0.71.1 127.0.70.10 1111 80\r\n"
    made = Edge(
        "127.0.70.10", port, proxied if variables.get("haproxy_edge_proxy_protocol") else b""
    )
    with ExitStack() as stack:
        for address in SERVERS.values():
            stack.enter_context(_process(sys.executable, "-c", _APPLICATION, address, str(behind)))
        stack.enter_context(_process("haproxy", "-db", "-f", str(path)))
        until(lambda: _serves(made), seconds=20, every=0.1)
        yield made


def _serves(edge: Edge) -> bool:
    try:
        with edge.connected() as stream:
            stream.sendall(edge.greeting + b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
            return stream.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


@contextmanager
def _process(*argv: str) -> Iterator[None]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()

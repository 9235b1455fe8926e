"""HAProxy as role haproxy has it on a load balancer, on loopback, with two servers behind it."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from haproxyd import hop
from templates.conftest import REPOSITORY, render_template
from unit.ports import free_port

from flotilla.hosts.haproxy import Runtime, local
from flotilla.rules import acme
from flotilla.rules.lb_maintenance import MAP
from flotilla.wait import until

ROLE = REPOSITORY / "roles" / "haproxy"
SERVERS = {"app-1": "127.0.70.1", "app-2": "127.0.70.2"}
ADDRESSES = {"lb-1": "127.0.70.10", "lb-2": "127.0.70.11"}
_ACCOUNTS = re.compile(r" user haproxy group haproxy|^    (user|group) haproxy\n", re.MULTILINE)
_APPLICATION = """
import ssl
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

class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    def finish_request(self, request, address):
        # At each handshake, as nginx does.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(sys.argv[3])
        request.settimeout(60)
        with context.wrap_socket(request, server_side=True) as stream:
            super().finish_request(stream, address)
    def handle_error(self, *_):
        pass

Server((sys.argv[1], int(sys.argv[2])), App).serve_forever()
"""


@dataclass(frozen=True, slots=True)
class Edge:
    """Where clients reach it."""

    host: str
    port: int
    # What has to come first on every connection.
    greeting: bytes = b""
    # Where its configuration, its pages and its sockets are.
    folder: Path = Path()
    servers: tuple[subprocess.Popen[bytes], ...] = ()
    tls_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    # Where the servers listen.
    behind: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def runtime(self) -> Runtime:
        """Its socket; files that it is asked about are those of ``folder``."""
        ask = local(self.folder / "admin.sock")
        return Runtime("lb-1", lambda text: ask(self._placed(text)))

    def _placed(self, text: str) -> str:
        return text.replace(MAP, str(self.map)).replace(acme.MAP, str(self.acme_map))

    @property
    def pem(self) -> Path:
        """Certificate, chain and key, where it has one."""
        return self.folder / "edge.pem"

    @property
    def map(self) -> Path:
        """The file that says whether there is maintenance."""
        return self.folder / "maintenance.map"

    @property
    def acme_map(self) -> Path:
        """The file that says what an authority is answered."""
        return self.folder / "acme.map"

    def reload(self) -> None:
        """As systemd does it on a load balancer: by the role's own script."""
        script = _reloader()
        script.MASTER_SOCKET = str(self.folder / "master.sock")
        script.STATE_FILE = self.folder / "state"
        script.CONFIGURATION = self.folder / "haproxy.cfg"
        assert script.reload(0) == 0

    def connected(self, source: str = "127.0.71.1", seconds: float = 10.0) -> socket.socket:
        """A connection from an address."""
        return socket.create_connection((self.host, self.port), seconds, (source, 0))


@contextmanager
def running(
    folder: Path, *, name: str = "lb-1", pem: str = "", port: int = 0, **variables: object
) -> Iterator[Edge]:
    """A load balancer and its servers, ended afterwards. ``variables`` are the role's; with ``pem``
    it has that certificate. Those of two names may run at once, at the same ``port`` too.

    Clients are at other addresses of loopback than 127.0.0.1, which is exempt from limits; so here
    it is that address alone.
    """
    port, behind, stats, tls_port = port or free_port(), free_port(), free_port(), free_port()
    address = ADDRESSES[name]
    known: dict[str, object] = {"haproxy_edge_peers": {}, "haproxy_edge_peers_port": free_port()}
    if pem:
        (folder / "edge.pem").write_text(pem)
        variables["haproxy_edge_certificate_path"] = str(folder / "edge.pem")
    text = render_template(
        *("haproxy", "haproxy.cfg.j2"),
        host=name,
        haproxy_edge_servers=SERVERS,
        haproxy_edge_server_port=behind,
        haproxy_edge_authority_path=str(folder / "authority.pem"),
        haproxy_stats_address=address,
        haproxy_stats_port=stats,
        **known | variables,
    )
    for file in _pages():
        name = Path(str(file["dest"])).name
        page = render_template("haproxy", str(file["src"]), host="lb-1", __haproxy_file=file)
        (folder / name).write_text(page)
    (folder / "authority.pem").write_text(hop.authority())
    for number, one in enumerate(SERVERS.values(), 1):
        hop.put(folder / f"leaf-{number}.pem", hop.leaf(one))
    (folder / "maintenance.map").touch()
    (folder / "acme.map").touch()
    text = _ACCOUNTS.sub("", text)
    text = text.replace("/etc/haproxy/errors/", f"{folder}/")
    text = text.replace(MAP, str(folder / "maintenance.map"))
    text = text.replace(acme.MAP, str(folder / "acme.map"))
    text = text.replace("/var/lib/haproxy/state", str(folder / "state"))
    text = text.replace("bind :80", f"bind {address}:{port}")
    text = text.replace("bind :443", f"bind {address}:{tls_port}")
    text = text.replace("/run/haproxy/admin.sock", str(folder / "admin.sock"))
    text = text.replace("    chroot /var/lib/haproxy\n", "")
    text = text.replace("127.0.0.0/8", "127.0.0.1")
    path = folder / "haproxy.cfg"
    path.write_text(text)
    proxied = b"PROXY TCP4 127.0.71.1 127.0.70.10 1111 80\r\n"
    with ExitStack() as stack:
        servers = [
            stack.enter_context(application(one, behind, folder / f"leaf-{number}.pem"))
            for number, one in enumerate(SERVERS.values(), 1)
        ]
        master = f"{folder / 'master.sock'}"
        process = stack.enter_context(_process("haproxy", "-W", "-S", master, "-f", str(path)))
        greeting = proxied if variables.get("haproxy_edge_proxy_protocol") else b""
        made = Edge(address, port, greeting, folder, tuple(servers), tls_port, process, behind)
        until(lambda: _serves(made) and _is_led(made), seconds=20, every=0.1)
        yield made


def application(address: str, port: int, leaf: Path) -> AbstractContextManager[Any]:
    """An application host: TLS with the certificate that is in ``leaf`` at each handshake."""
    return _process(sys.executable, "-c", _APPLICATION, address, str(port), str(leaf))


def _pages() -> list[dict[str, object]]:
    """What the role renders of error and maintenance pages."""
    files = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__haproxy_baked_files"]
    return [file for file in files if "/errors/" in file["dest"]]


def _reloader() -> Any:
    spec = importlib.util.spec_from_file_location("reloader", ROLE / "files/haproxy_reload.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_led(edge: Edge) -> bool:
    """Whether the master listens: its worker serves before that."""
    try:
        return "worker" in local(edge.folder / "master.sock")("show proc\n")
    except OSError:
        return False


def _serves(edge: Edge) -> bool:
    try:
        with edge.connected() as stream:
            stream.sendall(edge.greeting + b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
            # With a certificate, a redirect.
            return stream.recv(64).startswith((b"HTTP/1.1 200", b"HTTP/1.1 308"))
    except OSError:
        return False


@contextmanager
def _process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        # HAProxy's master ends its workers, if it is asked to.
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

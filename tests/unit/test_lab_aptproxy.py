"""Hosts get packages from this machine's mirrors, each file once and whole, and nothing else."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lab.aptproxy import AptProxy, Cache, Proxy

BODY = bytes(range(256)) * 4096  # 1 MiB
DEB = "/debian/pool/main/n/nginx/nginx_1.26.deb"
INDEX = "/debian/dists/trixie/InRelease"


class Mirror(ThreadingHTTPServer):
    """A package mirror whose behaviour a test can change while it serves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Upstream)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_after: int | None = None
        self.half_way = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Mirror

    def do_GET(self) -> None:
        mirror = self.server
        mirror.requests.append((self.command, self.path, dict(self.headers)))
        if "If-Modified-Since" in self.headers:
            self.answer(304)
        elif "Range" in self.headers:
            self.answer(206, BODY[100:200], {"Content-Range": f"bytes 100-199/{len(BODY)}"})
        elif "missing" in self.path:
            self.answer(404, b"no such package")
        else:
            self.answer(200, BODY)

    do_HEAD = do_GET  # noqa: N815  the name http.server looks for

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        self.server.half_way.set()
        self.server.go_on.wait(10)
        if self.server.cut_after is not None:
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    server = Mirror()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(mirror: Mirror, tmp_path: Path) -> Iterator[AptProxy]:
    shared = Proxy(frozenset({mirror.host}), Cache(tmp_path), lambda *_: None, {})
    running = AptProxy(shared, ("127.0.0.1", 0))
    yield running
    running.close()


def ask(proxy: AptProxy, url: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*proxy.address, timeout=10)
    try:
        connection.request(
            method, url, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def kept(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_package_is_fetched_once(proxy: AptProxy, mirror: Mirror) -> None:
    url = f"http://{mirror.host}{DEB}"
    assert [ask(proxy, url) for _ in range(3)] == [(200, BODY)] * 3
    assert len(mirror.requests) == 1


def test_hosts_that_ask_together_share_one_transfer(proxy: AptProxy, mirror: Mirror) -> None:
    url = f"http://{mirror.host}{DEB}"
    mirror.go_on.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, proxy, url) for _ in range(8)]
        assert mirror.half_way.wait(5)
        mirror.go_on.set()
        assert [answer.result() for answer in answers] == [(200, BODY)] * 8
    assert len(mirror.requests) == 1


def test_a_package_arrives_while_it_is_still_fetched(proxy: AptProxy, mirror: Mirror) -> None:
    mirror.go_on.clear()
    connection = http.client.HTTPConnection(*proxy.address, timeout=10)
    connection.request("GET", f"http://{mirror.host}{DEB}")
    answer = connection.getresponse()
    assert answer.read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    mirror.go_on.set()
    assert answer.read() == BODY[len(BODY) // 2 :]
    connection.close()


def test_a_transfer_that_is_cut_leaves_no_file_and_the_next_one_works(
    proxy: AptProxy, mirror: Mirror, tmp_path: Path
) -> None:
    url = f"http://{mirror.host}{DEB}"
    mirror.cut_after = len(BODY) // 2
    with pytest.raises(http.client.IncompleteRead):
        ask(proxy, url)
    assert kept(tmp_path) == []
    mirror.cut_after = None
    assert ask(proxy, url) == (200, BODY)


def test_a_client_that_hangs_up_does_not_stop_the_others(proxy: AptProxy, mirror: Mirror) -> None:
    url = f"http://{mirror.host}{DEB}"
    mirror.go_on.clear()
    quitter = http.client.HTTPConnection(*proxy.address, timeout=10)
    quitter.request("GET", url)
    quitter.getresponse().read(1)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(ask, proxy, url)
        quitter.close()
        mirror.go_on.set()
        assert patient.result() == (200, BODY)
    assert len(mirror.requests) == 1


def test_a_package_the_mirror_lacks_is_asked_for_again(
    proxy: AptProxy, mirror: Mirror, tmp_path: Path
) -> None:
    url = f"http://{mirror.host}/debian/pool/missing.deb"
    assert [ask(proxy, url) for _ in range(2)] == [(404, b"no such package")] * 2
    assert (len(mirror.requests), kept(tmp_path)) == (2, [])


def test_an_index_is_always_asked_for(proxy: AptProxy, mirror: Mirror, tmp_path: Path) -> None:
    url = f"http://{mirror.host}{INDEX}"
    assert [ask(proxy, url) for _ in range(2)] == [(200, BODY)] * 2
    assert (len(mirror.requests), kept(tmp_path)) == (2, [])


def test_conditions_and_ranges_reach_the_mirror(proxy: AptProxy, mirror: Mirror) -> None:
    url = f"http://{mirror.host}{INDEX}"
    assert ask(proxy, url, If_Modified_Since="Sat, 01 Nov 2025 00:00:00 GMT") == (304, b"")
    assert ask(proxy, url, Range="bytes=100-199") == (206, BODY[100:200])
    assert ask(proxy, url, "HEAD") == (200, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_nothing_but_reading_is_done(proxy: AptProxy, mirror: Mirror, method: str) -> None:
    status, body = ask(proxy, f"http://{mirror.host}{DEB}", method)
    assert (status, mirror.requests) == (403, [])
    assert method in body.decode()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/debian/pool/x.deb",
        "http://169.254.169.254/latest/meta-data/",
        "https://example.net/",
        "ftp://{host}/debian/pool/x.deb",
        "http://{host}@127.0.0.1:9/debian/pool/x.deb",
        "http://user@{host}/debian/pool/x.deb",
        "/debian/pool/x.deb",
    ],
)
def test_no_other_place_is_reached(proxy: AptProxy, mirror: Mirror, url: str) -> None:
    status, body = ask(proxy, url.format(host=mirror.host))
    assert (status, mirror.requests) == (403, [])
    assert mirror.host in body.decode(), "the refusal names the mirrors there are"


def test_a_tunnel_is_refused(proxy: AptProxy, mirror: Mirror) -> None:
    assert ask(proxy, f"{mirror.host}", "CONNECT")[0] == 403


def test_a_path_cannot_leave_the_cache(proxy: AptProxy, mirror: Mirror, tmp_path: Path) -> None:
    for path in ("/pool/../../../../etc/passwd", "/pool/%2e%2e/%2e%2e/etc/passwd", "/pool/x?y=1"):
        ask(proxy, f"http://{mirror.host}{path}")
    assert kept(tmp_path) == []


def test_a_mirror_that_is_away_is_named(proxy: AptProxy, mirror: Mirror) -> None:
    mirror.shutdown()
    mirror.server_close()
    status, body = ask(proxy, f"http://{mirror.host}{DEB}")
    assert status == 502
    assert mirror.host in body.decode()


def test_what_a_killed_proxy_left_half_done_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "mirror" / "pool" / "tmpab.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    Cache(tmp_path)
    assert kept(tmp_path) == []

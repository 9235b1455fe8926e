"""Clients that mean harm, or know no better: they are answered 4xx, and others do not notice."""

from __future__ import annotations

import gzip
import http.client
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

from haproxyd.attack import attacking
from haproxyd.edge import Edge, running

from flotilla.wait import until

HOST = b"Host: shop\r\n"
# A good client may be so much slower while somebody else attacks; and below so much, it is noise.
SLOWER, NOISE_SECONDS, TRIES = 3.0, 0.02, 3

MALFORMED = {
    "no method": b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n" + HOST + b"\r\n",
    "version 3": b"GET / HTTP/3.0\r\n" + HOST + b"\r\n",
    "version in words": b"GET / HTTP/one\r\n" + HOST + b"\r\n",
    "a control character in the path": b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a zero in the path": b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a zero in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "a bare CR in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n",
    "a folded header name": b"GET / HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "a blank before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
    "an empty header name": b"GET / HTTP/1.1\r\n" + HOST + b": y\r\n\r\n",
    "a header name with a bracket": b"GET / HTTP/1.1\r\n" + HOST + b"X(y): z\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: other\r\n\r\n",
    "two hosts in one": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "a host with a blank": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two lengths in one": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 2\r\n\r\nab",
    "a length below zero": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\na",
    "a length in words": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: ten\r\n\r\n",
    "a length in hexadecimal": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\na",
    "a length beyond numbers": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: "
    + b"9" * 30
    + b"\r\n\r\n",
    "an empty length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n",
    "a chunk of no length": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk below zero": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "an unknown coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: rot13\r\n\r\n",
    "a coding after chunked": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "a header of 20 KiB": b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 20_480 + b"\r\n\r\n",
    "a path of 20 KiB": b"GET /" + b"y" * 20_480 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "200 headers": b"GET / HTTP/1.1\r\n"
    + HOST
    + b"".join(b"X-%d: y\r\n" % n for n in range(200))
    + b"\r\n",
    "headers of 64 KiB": b"GET / HTTP/1.1\r\n"
    + HOST
    + b"".join(b"X-%d: " % n + b"y" * 700 + b"\r\n" for n in range(90))
    + b"\r\n",
    "a method of 300 letters": b"G" * 300 + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method with a bracket": b"GE{T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n",
    "a path without a slash": b"GET page HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path of a blank": b"GET / / HTTP/1.1\r\n" + HOST + b"\r\n",
    "TLS on the plain port": bytes.fromhex("160301006e010000") + b"a" * 106,
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a PROXY header": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "SMTP": b"EHLO mail.example\r\n",
    "random bytes": bytes(range(128, 256)) * 4 + b"\r\n\r\n",
    "a tab for a blank": b"GET\t/\tHTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    "high bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header name of 300 letters and a control": b"GET / HTTP/1.1\r\n"
    + HOST
    + b"X" * 300
    + b"\x02: y\r\n\r\n",
    "a line feed in the method": b"GE\nT / HTTP/1.1\r\n" + HOST + b"\r\n",
}
# What a lenient reader may serve without harm: it says nothing about where a request ends, or whom
# it is for. HAProxy refuses a zero since 2.8; nginx on the application's host always did.
HARMLESS = {"no host", "high bytes in the path", "a tab for a blank", "a zero in a header"}


def answer(edge: Edge, request: bytes) -> str:
    """The status of what is answered, "" for a connection that was ended without a word."""
    with edge.connected() as stream:
        with suppress(OSError):
            stream.sendall(request)
            stream.shutdown(socket.SHUT_WR)
        said = b""
        with suppress(OSError):
            while b"\r\n" not in said and (part := stream.recv(4096)):
                said += part
    return said.split(b" ")[1].decode() if said.startswith(b"HTTP/") else ""


def test_there_are_enough_of_them():
    assert len(MALFORMED) >= 50


def test_what_is_malformed_is_answered_4xx_and_reaches_no_server(edge: Edge) -> None:
    wrong = {}
    for name, request in MALFORMED.items():
        status = answer(edge, request)
        if not (status.startswith("4") or (status == "200" and name in HARMLESS)):
            wrong[name] = status
    assert wrong == {}


class Good:
    """A client that asks for a page 40 times a second, on new connections and on a kept one."""

    def __init__(self, edge: Edge, source: str) -> None:
        self._edge, self._source = edge, source
        self.took: list[float] = []
        self.failed: list[str] = []

    def ask(self, seconds: float) -> float:
        """The 99th percentile of what it waited."""
        self.took.clear()
        end = time.monotonic() + seconds
        kept = self._connection()
        while time.monotonic() < end:
            for connection in (kept, self._connection()):
                begun = time.monotonic()
                try:
                    connection.request("GET", "/")
                    got = connection.getresponse()
                    got.read()
                    if got.status != http.client.OK:
                        self.failed.append(str(got.status))
                except OSError as error:
                    self.failed.append(type(error).__name__)
                    kept = self._connection()
                self.took.append(time.monotonic() - begun)
            time.sleep(0.05)
        return statistics.quantiles(self.took, n=100)[98]

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            self._edge.host, self._edge.port, timeout=10, source_address=(self._source, 0)
        )


def others_do_not_notice(
    edge: Edge, attack: Callable[[], AbstractContextManager[dict[str, int]]]
) -> dict[str, int]:
    """No request of theirs fails, and in one of TRIES they do not wait: who else works on this
    machine may hold up the other tries, an attack that harms them is there in each.
    """
    waits = []
    for _ in range(TRIES):
        good = Good(edge, "127.0.71.9")
        before = good.ask(5.0)
        with attack() as answers:
            time.sleep(1.0)
            during = good.ask(8.0)
        assert good.failed == []
        if during <= max(SLOWER * before, before + NOISE_SECONDS):
            return answers
        waits.append((before, during))
    raise AssertionError(waits)


def test_two_thousand_slow_connections_of_one_address_and_of_many(edge: Edge) -> None:
    others_do_not_notice(edge, lambda: attacking("slowloris", edge, ["127.0.71.2"], 2000))
    many = [f"127.0.72.{number}" for number in range(1, 101)]
    others_do_not_notice(edge, lambda: attacking("slowloris", edge, many, 2000))


def test_a_flood_from_one_address_is_told_to_wait(tmp_path) -> None:
    # A limit that this machine's Python can exceed.
    with running(tmp_path, haproxy_edge_client_requests_per_second=60) as edge:
        answers = others_do_not_notice(edge, lambda: attacking("flood", edge, ["127.0.71.3"], 8))
    assert set(answers) == {"200", "429"}
    # Ten seconds of the limit, at most: what it asked for in the eight beyond that was refused.
    assert answers["200"] <= 60 * 10 + 1


def test_more_connections_than_one_may_have_are_hung_up_on(tmp_path) -> None:
    with running(tmp_path, haproxy_edge_client_connections=10) as edge, ExitStack() as stack:
        held = []
        for _ in range(30):
            # Who is hung up on may hear of it before it hears that it was connected.
            with suppress(ConnectionResetError):
                held.append(stack.enter_context(edge.connected("127.0.71.4")))
        until(lambda: sum(is_open(one) for one in held) == 10, seconds=5)
        with edge.connected("127.0.71.5") as other:
            assert is_open(other), "somebody else's are his own"


def is_open(stream: socket.socket) -> bool:
    stream.setblocking(False)
    try:
        return stream.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_whom_a_client_claims_to_be_is_not_believed(edge: Edge) -> None:
    connection = http.client.HTTPConnection(
        edge.host, edge.port, timeout=5, source_address=("127.0.71.6", 0)
    )
    connection.request("GET", "/", headers={"X-Forwarded-For": "6.6.6.6"})
    assert connection.getresponse().read().split(b"\n")[0] == b"127.0.71.6"


def test_with_the_proxy_protocol_it_is_who_the_header_says(tmp_path) -> None:
    request = b"GET / HTTP/1.0\r\nHost: shop\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
    with running(tmp_path, haproxy_edge_proxy_protocol=True) as edge, edge.connected() as stream:
        stream.sendall(b"PROXY TCP4 6.7.8.9 127.0.70.10 1111 80\r\n" + request)
        assert b"\r\n6.7.8.9\n" in stream.makefile("rb").read()
        assert answer(edge, request) == "", "whoever does not say who he is, is nobody"


def test_text_is_compressed_for_whoever_accepts_that(edge: Edge) -> None:
    for accepted in ("gzip", "identity"):
        connection = http.client.HTTPConnection(
            edge.host, edge.port, timeout=5, source_address=("127.0.71.7", 0)
        )
        connection.request("GET", "/", headers={"Accept-Encoding": accepted})
        got = connection.getresponse()
        body = got.read()
        if accepted == "gzip":
            assert got.getheader("Content-Encoding") == "gzip"
            body = gzip.decompress(body)
        assert body.count(b"page ") == 400

"""The hosts' way to packages, and to nothing else: a caching proxy for this machine's own mirrors.

Hosts of the lab reach nothing outside it. Their apt asks here; what is answered is GET and HEAD of
the mirrors that this machine's apt is configured with. Files that never change under their name
(package files, indexes named by their hash) are kept on disk, whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from lab import mirror
from lab.ports import Context, Service
from lab.run import run

ADDRESS = ("169.254.169.253", 3142)

Log = Callable[[str, Mapping[str, Any]], None]

_IMMUTABLE = re.compile(r"/pool/|/by-hash/")
_ASKED = ("Accept", "Cache-Control", "If-Modified-Since", "If-None-Match", "If-Range", "Range")
_ANSWERED = (
    *("Accept-Ranges", "Cache-Control", "Content-Encoding", "Content-Length", "Content-Range"),
    *("Content-Type", "ETag", "Last-Modified", "Location"),
)
_CHUNK = 128 * 1024
_TIMEOUT_SECONDS = (10, 60)  # to connect, between two reads


class Refused(Exception):  # noqa: N818  an answer, not a failure
    """This request is not for a mirror; the message is the body of the answer."""


class Download:
    """One upstream transfer into the cache, which any number of clients read while it grows.

    The file gets its name only when as many bytes arrived as were announced.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.length: int | None = None
        self._changed = threading.Condition()
        self._have = 0
        self._state = "waiting"  # then "open", then "whole" or "broken"
        self._part: Path | None = None

    def fill(self, answer: requests.Response) -> None:
        """Copy the answer's body to the disk. Raises OSError, HTTPError; readers are told."""
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self.target.parent, suffix=".part", delete=False
            ) as file:
                self._part = Path(file.name)
                self._step("open", 0, int(answer.headers["Content-Length"]))
                # urllib3 raises where fewer bytes arrive than were announced.
                for chunk in answer.raw.stream(_CHUNK, decode_content=False):
                    file.write(chunk)
                    file.flush()
                    self._step("open", len(chunk))
            self._part.replace(self.target)
            self._step("whole")
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """End without a file; whoever waits is told."""
        if self._part is not None:
            self._part.unlink(missing_ok=True)
        self._step("broken")

    def wait(self) -> bool:
        """Whether a body is coming, once that is known."""
        with self._changed:
            self._changed.wait_for(lambda: self._state != "waiting")
            return self._state != "broken"

    def read(self) -> Iterator[bytes]:
        """The body as it arrives. Raises OSError where it ends too early."""
        with self._open() as file:
            while True:
                state = self._beyond(file.tell())
                chunk = file.read(_CHUNK)
                if chunk:
                    yield chunk
                elif state == "broken":
                    raise OSError("the mirror stopped half-way")
                elif state == "whole":
                    return

    def _beyond(self, at: int) -> str:
        """The state, once there is more than `at` bytes or nothing more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._have > at or self._state != "open")
            return self._state

    def _open(self) -> BinaryIO:
        if self._part is not None:
            with contextlib.suppress(FileNotFoundError):  # it has its final name by now
                return self._part.open("rb")
        return self.target.open("rb")

    def _step(self, state: str, more: int = 0, length: int | None = None) -> None:
        with self._changed:
            self._state, self._have = state, self._have + more
            self.length = self.length if length is None else length
            self._changed.notify_all()


class Cache:
    """Immutable files on disk, each fetched once however many ask at the same time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._coming: dict[Path, Download] = {}
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.rglob("*.part"):
            left.unlink(missing_ok=True)

    def place(self, url: str) -> Path | None:
        """Where the file of `url` is kept; None when it is not a file to keep."""
        parts = urlsplit(url)
        steps = [step for step in unquote(parts.path).split("/") if step]
        if parts.query or not _IMMUTABLE.search(parts.path) or {".", ".."} & set(steps):
            return None
        return self._directory.joinpath(parts.hostname or "", *steps)

    def join(self, target: Path) -> tuple[Download | None, bool]:
        """The transfer of this file, and whether the caller has to start it; None once kept."""
        with self._lock:
            coming = self._coming.get(target)
            if coming is not None:
                return coming, False
            if target.is_file():
                return None, False
            coming = self._coming[target] = Download(target)
            return coming, True

    def leave(self, target: Path) -> None:
        """The transfer is over, one way or the other."""
        with self._lock:
            self._coming.pop(target, None)


class Proxy:
    """What all requests share: the mirrors, the cache and the connections upstream."""

    def __init__(
        self, hosts: frozenset[str], cache: Cache, log: Log, proxies: Mapping[str, str]
    ) -> None:
        self.hosts, self.cache, self.log = hosts, cache, log
        self._session = requests.Session()
        self._session.proxies.update(proxies)
        again = Retry(connect=2, read=False, redirect=False, status=False, backoff_factor=0.3)
        adapter = HTTPAdapter(pool_maxsize=32, max_retries=again)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def check(self, method: str, url: str) -> None:
        """Raise Refused unless this is a read from one of the mirrors."""
        parts = urlsplit(url)
        if method not in ("GET", "HEAD"):
            raise Refused(f"{method} is not answered: hosts of the lab only read packages here.")
        if parts.scheme not in ("http", "https") or parts.netloc not in self.hosts:
            raise Refused(
                f"{url} is not on a package mirror of this machine's apt "
                f"({', '.join(sorted(self.hosts)) or 'none is configured'}). "
                "Hosts of the lab reach nothing else outside it."
            )

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
        """The mirror's answer, its body not yet read. Raises RequestException."""
        return self._session.request(
            method,
            url,
            headers={"Accept-Encoding": "identity", **headers},
            stream=True,
            allow_redirects=False,
            timeout=_TIMEOUT_SECONDS,
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120
    server: _Server

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle_one_request()
            return
        self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        # Every method, known or not, gets the same treatment and so the same clear refusal.
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing; refusals and failures go to the lab's log."""

    def _serve(self) -> None:
        proxy, url = self.server.proxy, self.path
        try:
            proxy.check(self.command, url)
            target = proxy.cache.place(url)
            if self.command == "GET" and target is not None:
                self._immutable(url, target)
            else:
                self._passed_on(url)
        except Refused as refusal:
            proxy.log("aptproxy.refused", {"from": self.client_address[0], "url": url})
            self._say(403, str(refusal))
        except requests.RequestException as error:
            proxy.log("aptproxy.failed", {"url": url, "error": str(error)})
            self._say(502, f"{url}: the mirror did not answer: {error}")

    def _immutable(self, url: str, target: Path) -> None:
        download, first = self.server.proxy.cache.join(target)
        if download is None:
            self._kept(target)
            return
        if first:
            answer = self._begin(url, download)
            if answer is not None:
                self._relay(answer)
                return
        if download.wait():
            self._growing(download)
        else:
            self._passed_on(url)  # whatever the first one was told, this one hears it itself

    def _begin(self, url: str, download: Download) -> requests.Response | None:
        """Start the transfer; an answer that is no file to keep is returned instead."""
        proxy = self.server.proxy
        try:
            answer = proxy.ask("GET", url, {})
        except BaseException:
            download.give_up()
            proxy.cache.leave(download.target)
            raise
        if answer.status_code != 200 or "Content-Length" not in answer.headers:
            download.give_up()
            proxy.cache.leave(download.target)
            return answer

        def fill() -> None:
            try:
                download.fill(answer)
            except (OSError, ValueError, HTTPError) as error:
                proxy.log("aptproxy.failed", {"url": url, "error": str(error)})
            finally:
                proxy.cache.leave(download.target)
                answer.close()

        # Not in the client's thread: others may be reading when this client hangs up.
        threading.Thread(target=fill, name="lab-aptproxy-fill", daemon=True).start()
        return None

    def _kept(self, target: Path) -> None:
        with target.open("rb") as file:
            self._head(200, {"Content-Length": str(os.fstat(file.fileno()).st_size)})
            shutil.copyfileobj(file, self.wfile, _CHUNK)

    def _growing(self, download: Download) -> None:
        self._head(200, {"Content-Length": str(download.length)})
        try:
            for chunk in download.read():
                self.wfile.write(chunk)
        except OSError:
            # Too late for a status: closing early is how the client learns that bytes are missing.
            self.close_connection = True

    def _passed_on(self, url: str) -> None:
        wanted = {name: self.headers[name] for name in _ASKED if name in self.headers}
        self._relay(self.server.proxy.ask(self.command, url, wanted))

    def _relay(self, answer: requests.Response) -> None:
        with answer:
            headers = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
            bodiless = self.command == "HEAD" or answer.status_code in (204, 304)
            if "Content-Length" not in headers and not bodiless:
                headers["Connection"] = "close"
                self.close_connection = True
            self._head(answer.status_code, headers)
            if bodiless:
                return
            sent = 0
            with contextlib.suppress(OSError, HTTPError):
                for chunk in answer.raw.stream(_CHUNK, decode_content=False):
                    self.wfile.write(chunk)
                    sent += len(chunk)
            if sent != int(headers.get("Content-Length", sent)):
                self.close_connection = True

    def _say(self, status: int, text: str) -> None:
        body = (text + "\n").encode()
        self.close_connection = True
        self._head(
            status,
            {
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Length": str(len(body)),
                "Connection": "close",
            },
        )
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: Proxy


class AptProxy:
    """The running proxy."""

    def __init__(self, proxy: Proxy, address: tuple[str, int]) -> None:
        self._server = _Server(address, _Handler)
        self._server.proxy = proxy
        self.address: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="lab-aptproxy", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering and release the port. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5)
        self._server.server_close()


def serve(context: Context, address: tuple[str, int] = ADDRESS) -> Service:
    """Answer in threads of this process until closed; packages are kept under the lab's cache.

    `address` must already be on an interface. Raises OSError when it is not, or is taken.
    """
    cache = Cache(Path(context.cache) / "apt")
    return AptProxy(Proxy(mirror_hosts(), cache, context.log, _own_proxies()), address)


def mirror_hosts() -> frozenset[str]:
    """Hosts of the mirrors of this machine's apt, and of the one named for the lab."""
    listed = run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"])
    named = [os.environ.get(f"FLOTILLA_DEBIAN_{kind}MIRROR", "") for kind in ("", "SECURITY_")]
    return mirror.hosts([*listed.splitlines(), *named])


def _own_proxies() -> dict[str, str]:
    """The proxy this machine's apt itself goes through, by scheme."""
    found = {}
    for scheme in ("http", "https"):
        said = run(["apt-config", "dump", "--format", "%v", f"Acquire::{scheme}::Proxy"]).strip()
        if said and said != "DIRECT":
            found[scheme] = said
    return found

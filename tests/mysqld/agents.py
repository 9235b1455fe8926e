"""The watcher that runs beside each server, as a process of its own: what a host's unit starts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from mysqld.server import Mysqld
from mysqld.trio import Trio
from mysqld.trust import OURS

from flotilla import environment
from flotilla.rules.mysql_state import Place
from flotilla.wait import until

HEALTH_PORT = 3380


class Agent:
    """One host's agent. ``start`` from the main thread only."""

    def __init__(self, trio: Trio, server: Mysqld, api: str) -> None:
        self.server = server
        self._trio = trio
        self._api = api
        self._folder = trio.folder / f"agent-{server.name}"
        self._metadata = _metadata(server.instance_id)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it without waiting."""
        self._folder.mkdir(exist_ok=True)
        places = [Place(s.name, s.instance_id, s.address) for s in self._trio.servers.values()]
        (self._folder / "members").write_text(json.dumps([asdict(place) for place in places]))
        (self._folder / "authority.pem").write_text(OURS.root.public())
        settings = self._trio.settings
        environ = {
            "PYTHONPATH": str(environment.root() / "scripts"),
            "STATE_DIRECTORY": str(self._folder),
            "AWS_REGION": settings.region,
            "AWS_ENDPOINT_URL": self._api,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self._metadata,
            "MALLOC_ARENA_MAX": "1",
        }
        words = [
            *("--fleet", settings.name, "--env", settings.env),
            *("--authority", str(self._folder / "authority.pem")),
            *("--address", self.server.address, "--port", str(HEALTH_PORT)),
        ]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flotilla.agent.mysql", *words], env=environ, stderr=log
            )

    def stop(self) -> None:
        """End it at once."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def freeze(self) -> None:
        """Stop it where it is."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body; status 0 where it does not answer."""
        url = f"http://{self.server.address}:{HEALTH_PORT}{path}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError as error:
            return 0, {"why": str(error)}

    @property
    def log(self) -> str:
        """All that it said."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def memory_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @property
    def cpu_seconds(self) -> float:
        """Processor time it has used."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def _pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)


class Wire:
    """A TCP port that leads to another one, until it is cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_cut = False
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(stream,), daemon=True).start()

    def _carry(self, stream: socket.socket) -> None:
        if self.is_cut:
            time.sleep(5)  # as when packets are lost: no answer, not even a no
            stream.close()
            return
        with contextlib.suppress(OSError), stream, socket.create_connection(self._target) as other:
            back = threading.Thread(target=_copy, args=(other, stream), daemon=True)
            back.start()
            _copy(stream, other)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)


class Agents:
    """``with Agents(trio, api) as agents:`` all run; ``agents["mysql-2"]``."""

    def __init__(self, trio: Trio, api: str) -> None:
        self._wire = Wire(api)
        url = self._wire.url
        self._all = {name: Agent(trio, server, url) for name, server in trio.servers.items()}

    def cut_off(self) -> None:
        """None of them reaches AWS any more."""
        self._wire.is_cut = True

    def connect(self) -> None:
        """They reach AWS again."""
        self._wire.is_cut = False

    def __enter__(self) -> Self:
        for agent in self._all.values():
            agent.start()
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self._all.values():
            with contextlib.suppress(AssertionError, ProcessLookupError):
                agent.thaw()
            agent.stop()
        self._wire.close()

    def __getitem__(self, name: str) -> Agent:
        return self._all[name]

    def primaries(self) -> list[str]:
        """Who says that writes may come."""
        return [name for name, agent in self._all.items() if agent.ask("/primary")[0] == 200]

    def await_whole(self, primary: str | None = None, seconds: float = 20.0) -> str:
        """Wait until exactly one is primary and all others are replicas; its name."""

        def whole() -> str | None:
            found = self.primaries()
            if len(found) != 1 or primary not in {None, found[0]}:
                return None
            others = [agent for name, agent in self._all.items() if name != found[0]]
            return found[0] if all(a.ask("/replica")[0] == 200 for a in others) else None

        return until(whole, seconds=seconds, every=0.1)

    def await_primary(self, other_than: str, seconds: float = 15.0) -> str:
        """Wait until somebody else says that writes may come; its name."""

        def moved() -> str | None:
            found = self.primaries()
            return found[0] if len(found) == 1 and found[0] != other_than else None

        return until(moved, seconds=seconds, every=0.02)

    def logs(self) -> str:
        """Everything that all of them said, for a test that fails."""
        return "\n".join(f"--- {name}\n{agent.log}" for name, agent in self._all.items())


def _metadata(instance_id: str) -> str:
    """A metadata service for one instance; its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def do_PUT(self) -> None:
            self._say("token")

        def do_GET(self) -> None:
            folder = "/latest/meta-data/"
            role = json.dumps(
                {
                    "AccessKeyId": "testing",
                    "SecretAccessKey": "testing",
                    "Token": "testing",
                    "Expiration": "2099-01-01T00:00:00Z",
                }
            )
            texts = {
                f"{folder}instance-id": instance_id,
                f"{folder}iam/security-credentials/": "role",
                f"{folder}iam/security-credentials/role": role,
            }
            self._say(texts[self.path])

        def _say(self, text: str) -> None:
            with contextlib.suppress(OSError):  # whoever asked was killed meanwhile
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"

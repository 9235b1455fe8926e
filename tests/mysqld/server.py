"""One real mysqld on an address of its own on the loopback, with the settings that hosts get."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pymysql
import yaml
from mysqld.binaries import Binaries
from mysqld.trust import OURS

from flotilla import environment
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.wait import until

_ROLE = environment.root() / "roles" / "mysql"
_START_SECONDS = 90.0
_STOP_SECONDS = 60.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
PORT = 3306
ADMIN_PORT = 33062

# Placement and size; all that decides what survives is the role's.
_SMALL = {
    "user": "root",
    "port": PORT,
    "admin_port": ADMIN_PORT,
    "socket": "mysqld.sock",
    "pid_file": "mysqld.pid",
    "log_error": "error.log",
    "log_error_verbosity": 3,
    "plugin_load_add": "auth_socket.so",
    "innodb_buffer_pool_size": "32M",
    "innodb_redo_log_capacity": "8M",
    "innodb_doublewrite_pages": 32,
    "innodb_use_native_aio": "OFF",  # a machine's slots are few
    "secure_file_priv": "NULL",
}


def settings_file(number: int, address: str, served: Path) -> str:
    """What the role writes to zz-flotilla.cnf for a host."""
    defaults = yaml.safe_load((_ROLE / "defaults/main.yml").read_text())
    plain = {n: v for n, v in defaults.items() if not (isinstance(v, str) and "{{" in v)}
    template = jinja2.Environment(autoescape=False).from_string(
        (_ROLE / "templates/mysqld.cnf.j2").read_text()
    )
    return template.render(
        plain
        | {
            "ansible_managed": "for tests",
            "mysql_server_id": number,
            "mysql_address": address,
            "mysql_buffer_pool_mb": 32,
            "__mysql_tls_file": served,
        }
    )


@dataclass(slots=True)
class Mysqld:
    """A server's files and its process. ``start`` from the main thread only.

    The kernel ends the process together with the thread that started it, so that no server outlives
    its test.
    """

    binaries: Binaries
    folder: Path
    name: str
    number: int
    address: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def instance_id(self) -> str:
        """What EC2 would call its host."""
        return f"i-{self.number:017x}"

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def served(self) -> Path:
        """Its certificate with all that belongs to it."""
        return self.folder / "server.pem"

    @property
    def log(self) -> str:
        """All that the server said."""
        path = self.folder / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def initialize(self) -> None:
        """Make a blank data directory: no password for root, no identity."""
        self._write_settings()
        subprocess.run(
            [*self._argv(), "--initialize-insecure"], check=True, timeout=_START_SECONDS * 2
        )
        (self.data / "auto.cnf").unlink()

    def restore(self, template: Path) -> None:
        """Become a copy of a stopped server's data directory."""
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.copytree(template, self.data)

    def start(self, **overrides: object) -> None:
        """Start without waiting; ``overrides`` are settings of this start."""
        self._write_settings()
        self.process = subprocess.Popen(
            [*self._argv(), *(f"--{name}={value}" for name, value in overrides.items())],
            preexec_fn=_end_with_parent,  # noqa: PLW1509  one C call
            stdin=subprocess.DEVNULL,
        )

    def ready(self) -> None:
        """Wait until it answers. Raises AssertionError with its log when it ended."""

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log[-3000:]
            session = self.session()
            try:
                return bool(session.query("SELECT 1 AS one", seconds=1.0))
            except FlotillaError:
                return False
            finally:
                session.close()

        until(answers, seconds=_START_SECONDS, every=0.05)

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Power off, as far as the server can tell: nothing is flushed, nobody is told."""
        self._signal(signal.SIGKILL)
        self._gone()

    def stop(self) -> None:
        """Shut down in order."""
        if self.is_running:
            self.thaw()
            self._signal(signal.SIGTERM)
            self._gone()

    def freeze(self) -> None:
        """Stop all of it where it is; the kernel keeps its connections open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on from there."""
        self._signal(signal.SIGCONT)

    def stream(self) -> socket.socket:
        """A connection to the Unix socket, for ``flotilla.hosts.mysql.Server``."""
        return unix_stream(self.folder)

    def session(self) -> Server:
        """A new session as root."""
        return Server(self.name, self.stream)

    def client(self, user: str, password: str, **options: Any) -> Any:
        """A client's connection over TCP, as applications make it."""
        return pymysql.connect(
            host=self.address, port=PORT, user=user, password=password, autocommit=True, **options
        )

    def _argv(self) -> list[str]:
        placed = {
            "basedir": self.binaries.root / "usr",
            "datadir": self.data,
            "lc_messages_dir": self.binaries.share,
            "character_sets_dir": self.binaries.share / "charsets",
            "plugin_dir": self.binaries.plugins,
            "bind_address": self.address,
            "admin_address": self.address,
        }
        inside = {"socket", "pid_file", "log_error"}
        small = {n: self.folder / str(v) if n in inside else v for n, v in _SMALL.items()}
        return self.binaries.argv(
            "usr/sbin/mysqld",
            f"--defaults-file={self.folder / 'my.cnf'}",
            *(f"--{name.replace('_', '-')}={value}" for name, value in (placed | small).items()),
        )

    def _write_settings(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.served.exists():
            self.served.write_bytes(OURS.served(self.name, self.address))
        settings = settings_file(self.number, self.address, self.served)
        (self.folder / "my.cnf").write_text(settings)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running and self.process is not None:
            os.kill(self.process.pid, number)

    def _gone(self) -> None:
        if self.process is not None:
            self.process.wait(_STOP_SECONDS)


def unix_stream(folder: Path) -> socket.socket:
    """A connection to the server whose files are in ``folder``."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(2.0)
    made.connect(str(folder / "mysqld.sock"))
    return made


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)

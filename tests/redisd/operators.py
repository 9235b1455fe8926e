"""An operator's session on a group of the loopback: what SSH would carry is carried here.

Commands that are given to a host are run by this machine's shell as they stand, with the host's
own folders in place of a host's paths; its systemctl starts and stops the host's processes, its
redis_node.py is the role's, and its apt-get upgrades by touching the program.
"""

from __future__ import annotations

import json
import os
import shlex
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redisd.group import HOSTS, ROLE, Group, Process, checker, redis_node

from flotilla.errors import HostFailed, Unreachable
from flotilla.hosts.ssh import Result, Results
from flotilla.redis.operate import TOOL
from flotilla.redis.operate_backup import BACKUP_TOOL
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import until

# What a session opens with, by the modules whose commands find this group instead of a fleet.
MODULES = ("operate", "operate_backup", "operate_maintain", "operate_rebuild")
_NODE = f"""\
#!{sys.executable}
import pathlib, shutil, sys
sys.path.insert(0, {str(ROLE / "files")!r})
shutil.chown = lambda *_: None  # there is no user redis here
import redis_node as node
home = pathlib.Path(__file__).parent
node.SETTINGS, node.OWNED = home / "flotilla.json", home / "flotilla.conf"
node.HOME, node.DATA, node.ROLE = home, home / "data", home / "role.conf"
node.LEAF, node.AUTHORITY = home / "leaf.pem", home.parent / "authority.pem"
sys.exit(node.main())
"""
# The tool that role redis_backup installs, in the account that the environment names.
_BACKUP = f"""\
#!{sys.executable}
import pathlib, sys
sys.path.insert(0, {str(ROLE.parents[1] / "scripts")!r})
from flotilla.agent import redis_backup as tool
home = pathlib.Path(__file__).parent
tool.HOME, tool.NODE = home, str(home / "node.py")
words = ["--fleet", "flotilla", "--env", "lab", "--host", home.name, "--namespace", "Flotilla"]
sys.exit(tool.main([*words, *sys.argv[1:]]))
"""
_SYSTEMCTL = """\
#!/usr/bin/python3 -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as end:
    end.connect({socket!r})
    end.sendall((json.dumps([{name!r}, os.getppid(), *sys.argv[1:]]) + "\\n").encode())
    code, text = json.loads(end.makefile().readline())
(sys.stderr if code else sys.stdout).write(text)
sys.exit(code)
"""
# Its cache is a file of what it would upgrade.
_APT = """#!/bin/sh
case "$*" in
  *"-s install"*) cat "{root}/upgrades" 2>/dev/null || true ;;
  *install*)
    [ ! -e "{root}/broken" ] || {{ echo "E: dpkg was interrupted"; exit 100; }}
    touch "{root}/usr/bin/redis-check-rdb"
    rm -f "{root}/upgrades" ;;
esac
"""
_DPKG = "#!/bin/sh\nprintf 'ii  redis-server\\nii  redis-tools\\nun  redis\\n'\n"


class Hands:
    """What a session's Runner does, for ``group``. ``did`` is what systemctl was told, by host.

    ``unreachable`` holds names of hosts; ``on`` may hold something that happens once, before
    systemctl does what it is told, or instead if it returns why not: ``{"redis-2: stop": act}``;
    ``caller`` is the process that told it.
    """

    def __init__(self, group: Group, folder: Path) -> None:
        self._group = group
        self._folder = folder
        self._socket = str(folder / "systemd")
        self.unreachable: set[str] = set()
        self.did: list[str] = []
        self.on: dict[str, Any] = {}
        self.caller = 0
        for name in HOSTS:
            self._furnish(name)

    def home(self, name: str) -> Path:
        """What is /var/lib/redis on a host."""
        return self._group.folder / name

    def root(self, name: str) -> Path:
        """What is / on a host."""
        return self._folder / "roots" / name

    def pending(self, *names: str, to: str = "5:8.0.3-1") -> None:
        """Have an upgrade for these hosts."""
        line = f"Inst redis-server [5:8.0.2-3] ({to} Debian:13/stable [amd64])\n"
        for name in names:
            (self.root(name) / "upgrades").write_text(line)

    def run(self, host: Host | str, command: str, *, check: bool = True, **options: Any) -> Result:
        name = host if isinstance(host, str) else host.name
        if name in self.unreachable:
            raise Unreachable(f"{name}: no answer while connecting")
        root = self.root(name)
        for there, here in (
            (TOOL, str(self.home(name) / "node.py")),
            (BACKUP_TOOL, str(self.home(name) / "backup.py")),
            ("/var/lib/redis", str(self.home(name))),
            ("/usr/bin/", f"{root}/usr/bin/"),
            ("/etc/systemd/", f"{root}/etc/systemd/"),
            ("/var/log/", f"{root}/var/log/"),
        ):
            command = command.replace(there, here)
        done = subprocess.run(
            ["sh", "-c", command],
            env=os.environ | {"PATH": f"{root}/bin:{os.environ['PATH']}"},
            input=options.get("stdin", ""),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            last = (done.stderr or done.stdout).splitlines()[-1:]
            raise HostFailed(f"{name}: exited {done.returncode}: {''.join(last)}")
        return Result(name, done.stdout, done.stderr, done.returncode, 0.0)

    def run_on(self, hosts: Iterable[Host], command: str, **options: Any) -> Results:
        found = Results()
        for host in hosts:
            try:
                found[host.name] = self.run(host, command, **options)
            except (HostFailed, Unreachable) as error:
                found[host.name] = error
        return found

    @contextmanager
    def serving(self) -> Iterator[Hands]:
        """With an init that listens."""
        hands = self

        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                name, hands.caller, *words = json.loads(self.rfile.readline())
                self.wfile.write((json.dumps(hands._systemctl(name, words)) + "\n").encode())

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        with Server(self._socket, Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield self
            server.shutdown()

    def _systemctl(self, name: str, words: list[str]) -> tuple[int, str]:
        if words[0] == "show":
            return 0, self._shown(name, words[1], words[3])
        services = [word.removesuffix(".service") for word in words[1:]]
        self.did.append(f"{name}: {' '.join([words[0], *services])}")
        act = self.on.pop(f"{name}: {words[0]}", None)
        if act is not None and (failure := act()):
            return 1, f"{failure}\nSee journalctl for details.\n"
        for service in services:
            process = self._process(name, service)
            if words[0] in ("stop", "restart"):
                process.stop()
            wanted = words[0] in ("start", "restart") and not process.is_running
            if wanted and not self._start(name, service, process):
                return 1, ""
        return 0, ""

    def _start(self, name: str, service: str, process: Process) -> bool:
        node = str(self.home(name) / "node.py")
        what = service.removeprefix("redis-").replace("server", "redis")
        if subprocess.run([node, "start", what], check=False).returncode:
            return False
        self._at_home(name)
        process.start()
        server = service == "redis-server"
        client = self._group.client(name) if server else self._group.sentinel(name)
        until(lambda: _answers(client), seconds=20, every=0.05)
        return not server or not subprocess.run([node, "remember"], check=False).returncode

    def _at_home(self, name: str) -> None:
        """What a Sentinel without memory was given, with this host's folders and one address."""
        path = self.home(name) / "sentinel.conf"
        if path.exists():
            text = path.read_text().replace(f"{HOSTS[name]} 127.0.0.1", HOSTS[name])
            path.write_text(text.replace("/etc/redis/", f"{self.home(name)}/"))

    def _shown(self, name: str, service: str, what: str) -> str:
        if what == "FragmentPath":
            return f"{self.root(name)}/usr/lib/systemd/system/{service}.service\n"
        started = datetime.fromtimestamp(self._process(name, service).started, UTC)
        return f"{started:%a %Y-%m-%d %H:%M:%S.%f} UTC\n"

    def _process(self, name: str, service: str) -> Process:
        all_of_them = self._group.servers if service == "redis-server" else self._group.sentinels
        return all_of_them[name]

    def _furnish(self, name: str) -> None:
        home, root = self.home(name), self.root(name)
        (home / "flotilla.json").write_text(json.dumps(asdict(self._group.settings(name))))
        for path in ("bin", "usr/bin", "usr/lib/systemd/system", "var/log"):
            (root / path).mkdir(parents=True)
        (root / "usr/bin/redis-check-rdb").touch()
        for service in ("redis-server", "redis-sentinel"):
            (root / "usr/bin" / service).symlink_to("redis-check-rdb")
            (root / f"usr/lib/systemd/system/{service}.service").touch()
            unit = root / f"etc/systemd/system/{service}.service.d/flotilla.conf"
            unit.parent.mkdir(parents=True)
            unit.touch()
        _program(home / "node.py", _NODE)
        _program(home / "backup.py", _BACKUP)
        _program(root / "bin/redis-check-rdb", f'#!/bin/sh\nexec {shlex.join(checker())} "$@"\n')
        _program(root / "bin/systemctl", _SYSTEMCTL.format(socket=self._socket, name=name))
        _program(root / "bin/apt-get", _APT.format(root=root))
        _program(root / "bin/dpkg-query", _DPKG)


@contextmanager
def operator(
    group: Group, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Hands, list[Host]]]:
    """Commands find this group where they would find a fleet."""
    hosts = [_host(name) for name in HOSTS]
    # Every file is older than the processes, as on a host that has booted.
    hands = Hands(group, folder)
    for process in (*group.servers.values(), *group.sentinels.values()):
        process.started = max(process.started, _now())

    @contextmanager
    def opened(_: Settings, *, fresh: bool) -> Iterator[tuple[Hands, list[Host]]]:
        yield hands, hosts

    for module in MODULES:
        monkeypatch.setattr(f"flotilla.redis.{module}.opened", opened)
    with hands.serving():
        yield hands, hosts


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _answers(client: Any) -> bool:
    with suppress(redis_node.redis.exceptions.RedisError):
        return bool(client.ping())
    return False


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _host(name: str) -> Host:
    return Host(
        name=name,
        instance_id=f"i-{name}",
        role="redis",
        number=int(name[-1]),
        zone="eu-central-1a",
        state="running",
        private_ip=HOSTS[name],
        public_ip=None,
        image_id="ami-1",
        type="t3.small",
        launched_at=datetime.now(UTC),
        tags={},
        asg=None,
    )

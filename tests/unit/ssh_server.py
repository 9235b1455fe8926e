# ruff: noqa: ARG002  paramiko calls these with arguments we have no use for
"""An SSH server in this process, to test the client: exec, and forwarding as a bastion does."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import paramiko

CHUNK = 1 << 15


class SshServer:
    """Listens on ``address`` and lets ``allowed`` (an authorized_keys line) in, whoever they are.

    Commands run under a shell here, as the account the tests run as; ``folder`` comes first on
    their PATH. ``hang`` stops answering without closing anything, as a frozen host does.
    """

    def __init__(self, address: str, allowed: str, folder: Path, port: int = 0) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self.allowed = allowed
        self.folder = folder
        self.logins = 0
        self.hang = threading.Event()
        self._open: list[paramiko.Transport] = []
        self._listener = socket.create_server((address, port), backlog=64)
        self.address, self.port = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def public(self) -> str:
        """Its host key, as its console would show it."""
        return f"{self.key.get_name()} {self.key.get_base64()}"

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close alone leaves accept() at it
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every connection, as a reboot does, and go on listening."""
        while self._open:
            self._open.pop().close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                transport = paramiko.Transport(sock)
                transport.add_server_key(self.key)
                self._open.append(transport)
                threading.Thread(target=self._serve, args=(transport,), daemon=True).start()

    def _serve(self, transport: paramiko.Transport) -> None:
        session = _Session(self)
        kept = []  # paramiko closes a channel that nobody holds
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=session)
            while transport.is_active():
                channel = transport.accept(0.2)
                kept.append(channel)
                if channel is not None and channel.get_id() in session.targets:
                    target = session.targets.pop(channel.get_id())
                    threading.Thread(target=_join, args=(channel, target), daemon=True).start()


class _Session(paramiko.ServerInterface):
    def __init__(self, server: SshServer) -> None:
        self._server = server
        self.targets: dict[int, socket.socket] = {}

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if f"{key.get_name()} {key.get_base64()}" not in self._server.allowed:
            return paramiko.AUTH_FAILED
        self._server.logins += 1
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if not self._server.hang.is_set():
            # paramiko says yes only after this returns; an answer before it is an error to clients.
            threading.Timer(0.02, self._execute, args=(channel, command)).start()
        return True

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        try:
            self.targets[chanid] = socket.create_connection(destination, timeout=5)
        except OSError:
            return paramiko.OPEN_FAILED_CONNECT_FAILED
        return paramiko.OPEN_SUCCEEDED

    def _execute(self, channel: paramiko.Channel, command: bytes) -> None:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command.decode()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env={**os.environ, "PATH": f"{self._server.folder}:{os.environ['PATH']}"},
        )  # fmt: skip
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr

        def feed() -> None:
            _copy(partial(channel.recv, CHUNK), stdin.write)
            stdin.close()

        threading.Thread(target=feed, daemon=True).start()
        outputs = [(stdout, channel.sendall), (stderr, channel.sendall_stderr)]
        threads = [
            threading.Thread(target=_copy, args=(partial(pipe.read, CHUNK), send), daemon=True)
            for pipe, send in outputs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        code = process.wait()
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            if code >= 0:
                channel.send_exit_status(code)
            channel.close()


def _copy(read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    with contextlib.suppress(OSError, EOFError, ValueError):
        while data := read():
            write(data)


def _join(channel: paramiko.Channel, target: socket.socket) -> None:
    """Pass bytes both ways until one side ends."""
    target.settimeout(None)

    def outwards() -> None:
        _copy(partial(channel.recv, CHUNK), target.sendall)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=outwards, daemon=True).start()
    _copy(partial(target.recv, CHUNK), channel.sendall)
    with contextlib.suppress(OSError, EOFError):
        channel.close()

"""A FIDO2 token as ssh-agent speaks for it: an ed25519-sk key and what its owner proved."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KIND = b"sk-ssh-ed25519@openssh.com"
APPLICATION = b"ssh:"
TOUCHED, VERIFIED = 0x01, 0x04
_ASKED, _KEYS, _SIGN, _SIGNED, _FAILED = 11, 12, 13, 14, 5


class Token:
    """Listens at ``path``; ``public`` is its key. ``proof`` is what its owner did: a touch, and
    with VERIFIED a PIN or a finger.
    """

    def __init__(self, path: Path, proof: int) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._proof = proof
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def _blob(self) -> bytes:
        raw = serialization.Encoding.Raw
        key = self._key.public_key().public_bytes(raw, serialization.PublicFormat.Raw)
        return _text(KIND) + _text(key) + _text(APPLICATION)

    @property
    def public(self) -> str:
        return f"{KIND.decode()} {b64encode(self._blob).decode()}"

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while head := stream.read(4):
                asked = stream.read(struct.unpack(">I", head)[0])
                stream.write(_text(self._answer(asked)))
                stream.flush()

    def _answer(self, asked: bytes) -> bytes:
        if asked[0] == _ASKED:
            return bytes([_KEYS]) + struct.pack(">I", 1) + _text(self._blob) + _text(b"token")
        if asked[0] != _SIGN:
            return bytes([_FAILED])
        _, rest = _split(asked[1:])
        data, _ = _split(rest)
        proof = bytes([self._proof]) + struct.pack(">I", 7)
        application, message = (hashlib.sha256(part).digest() for part in (APPLICATION, data))
        signature = self._key.sign(application + proof + message)
        return bytes([_SIGNED]) + _text(_text(KIND) + _text(signature) + proof)


def _text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _split(value: bytes) -> tuple[bytes, bytes]:
    (size,) = struct.unpack(">I", value[:4])
    return value[4 : 4 + size], value[4 + size :]

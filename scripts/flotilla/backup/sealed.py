"""What a backup puts into S3 is compressed, encrypted, and bound to the name it is stored under.

    b"FLOT1" | id of the key, 8 bytes | salt, 16 bytes | AES-256-GCM of a zstd frame

Every object has a key of its own, derived (HKDF, RFC 5869) from a key of the ring, the salt and the
name; so one nonce is enough, and an object that was moved to another name, cut off or changed in
one bit does not open. The primitives are ``cryptography``'s, the compression ``zstandard``'s.

A ring is one SSM parameter: keys with blanks between, the newest first. The newest seals; all of
them open, so that a rotation keeps every old backup readable.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from os import urandom

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flotilla.errors import BadOption, Refused

MAGIC = b"FLOT1"
_ID, _SALT, _TAG = 8, 16, 16
OVERHEAD = len(MAGIC) + _ID + _SALT + _TAG
_NONCE = bytes(12)
_SHORTEST = 24
# As fast as the network of a small instance, at two thirds of the size of level -1.
LEVEL = 1


class DamagedError(Refused):
    """An object is not what was stored under its name."""

    def __init__(self, name: str, why: str, next: str = "fab backup.verify") -> None:  # noqa: A002
        super().__init__(
            f"{name}: {why}",
            why="what it holds cannot be trusted",
            untouched="Nothing was changed",
            next=next,
        )


@dataclass(frozen=True, slots=True)
class Ring:
    """Keys, the newest first. No repr shows one."""

    keys: tuple[bytes, ...] = field(repr=False)
    salt: Callable[[int], bytes] = field(default=urandom, repr=False)

    @classmethod
    def parse(cls, text: str) -> Ring:
        """The ring in a parameter. Raises BadOption, without the keys, for what is none."""
        keys = tuple(part.encode() for part in text.split())
        if not keys or min(map(len, keys)) < _SHORTEST:
            raise BadOption(
                f"the ring of backup keys has {len(keys)} keys, or one of under {_SHORTEST} bytes",
                "a backup that nobody can open is none",
                "Nothing was changed",
                "fab fleet.provision",
            )
        return cls(keys)

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return _id(self.keys[0]).hex()

    def mac(self, data: bytes) -> str:
        """Proof that somebody with the newest key wrote this: 64 hexadecimal digits."""
        return _mac(self.keys[0], data)

    def is_mac(self, mac: str, data: bytes) -> bool:
        """Whether it is such a proof, by any key of the ring."""
        return any(hmac.compare_digest(_mac(key, data), mac) for key in self.keys)

    def seal(self, name: str, data: bytes) -> bytes:
        """The object to store under ``name``."""
        key, salt = self.keys[0], self.salt(_SALT)
        frame = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(data)
        sealed = AESGCM(_derived(key, salt, name)).encrypt(_NONCE, frame, name.encode())
        return b"".join((MAGIC, _id(key), salt, sealed))

    def open(self, name: str, stored: bytes, *, most: int) -> bytes:
        """What was sealed, ``most`` bytes at the most. Raises DamagedError."""
        head = len(MAGIC) + _ID
        if len(stored) < OVERHEAD or not stored.startswith(MAGIC):
            raise DamagedError(name, f"{len(stored)} bytes that are no sealed object")
        wanted, salt = stored[len(MAGIC) : head], stored[head : head + _SALT]
        key = next((one for one in self.keys if _id(one) == wanted), None)
        if key is None:
            known = ", ".join(_id(one).hex() for one in self.keys)
            raise DamagedError(
                name,
                f"it is sealed with key {wanted.hex()}, and the ring has {known}",
                "docs/runbooks/backup-key-is-lost.md",
            )
        try:
            frame = AESGCM(_derived(key, salt, name)).decrypt(
                _NONCE, memoryview(stored)[head + _SALT :], name.encode()
            )
        except InvalidTag:
            raise DamagedError(name, "its content is not what was sealed under this name") from None
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= most:
            raise DamagedError(name, f"it holds {size} bytes, where {most} were expected at most")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1))


def no_keys(parameter: str) -> Refused:
    """The error for a fleet without a ring."""
    return Refused(
        f"SSM has no parameter {parameter}",
        "without it no backup can be made or opened",
        "Nothing was changed",
        "fab fleet.provision; docs/runbooks/backup-key-is-lost.md",
    )


def digest(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _id(key: bytes) -> bytes:
    return hashlib.sha256(b"flotilla backup key\0" + key).digest()[:_ID]


def _derived(key: bytes, salt: bytes, name: str) -> bytes:
    return HKDF(SHA256(), 32, salt, b"flotilla backup object\0" + name.encode()).derive(key)


def _mac(key: bytes, data: bytes) -> str:
    return hmac.new(b"flotilla backup manifest\0" + key, data, hashlib.sha256).hexdigest()

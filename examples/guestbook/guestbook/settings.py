"""What the application is told by its environment, read once at start."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class SettingsError(Exception):
    """A variable is missing or cannot be read; the message names it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Host and TCP port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the application needs to know. Times are in seconds."""

    writer: Address
    reader: Address
    database: str
    database_user: str
    database_password: str
    database_ca: str | None
    cache: Address
    cache_ca: str | None
    cache_user: str
    cache_password: str
    secret_key: str
    patience_seconds: float
    version: str
    host: str


def read(env: Mapping[str, str], *, release: Path | None = None) -> Settings:
    """Read the settings from `env`, and the version from the file VERSION of the release.

    `release` is the working directory unless it is given.
    Raises SettingsError when a secret is missing or an address has no port.
    """
    version = (release or Path.cwd()) / "VERSION"
    return Settings(
        writer=_address(env, "DATABASE_WRITER", "127.0.0.1:3306"),
        reader=_address(env, "DATABASE_READER", "127.0.0.1:3307"),
        database=env.get("DATABASE_NAME", "app"),
        database_user=env.get("DATABASE_USER", "app"),
        database_password=_required(env, "DATABASE_PASSWORD"),
        database_ca=env.get("DATABASE_CA") or None,
        cache=_address(env, "CACHE_ADDRESS", "127.0.0.1:6379"),
        cache_ca=env.get("CACHE_CA") or None,
        cache_user=env.get("CACHE_USER", "app"),
        cache_password=_required(env, "CACHE_PASSWORD"),
        secret_key=_required(env, "SECRET_KEY"),
        patience_seconds=float(env.get("DATABASE_PATIENCE_SECONDS", "3")),
        version=version.read_text().strip() if version.is_file() else "unreleased",
        host=socket.gethostname(),
    )


def _required(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set, and there is no safe default for a secret")
    return value


def _address(env: Mapping[str, str], name: str, default: str) -> Address:
    value = env.get(name) or default
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit():
        raise SettingsError(f"{name} is {value!r}; it must be host:port")
    return Address(host, int(port))

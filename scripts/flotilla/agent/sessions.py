"""Sessions on the members of a cluster, as a watcher opens them: TLS to the admin port.

That port has room when clients hold every connection, and stays open in offline mode. Whoever
listens has to prove the host's name below the zone of the role: issuers of other roles can vouch
for every address of the VPC, and for no such name.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flotilla.hosts.mysql import SOCKET, Server
from flotilla.mysql.accounts import AGENT, WATCHER
from flotilla.mysql.cluster import Cluster, Seat
from flotilla.rules.mysql_state import Place

ADMIN_PORT = 33062
# To connect; the limit of a statement is its caller's.
CONNECT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Trust:
    """The fleet's authority (a PEM file), and the name that all names of hosts are below."""

    authority: Path
    zone: str

    def context(self) -> ssl.SSLContext:
        """TLS with that authority alone. Raises OSError where the file is not there."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_verify_locations(cafile=self.authority)
        return made


class Sessions:
    """Makes sessions on members; ``password`` gives the account's, as it is at that moment."""

    def __init__(self, password: Callable[[], str], trust: Trust, port: int = ADMIN_PORT) -> None:
        self._password = password
        self._port = port
        self._zone = trust.zone
        # Once: reading it for each session would take longer than the session.
        self._tls = trust.context()

    def server(self, place: Place) -> Server:
        """A new session on a member, not yet opened."""
        return Server(
            place.name,
            dial(place.address, self._port),
            WATCHER,
            password=self._password,
            tls=self._tls,
            proves=f"{place.name}.{self._zone}",
        )

    def cluster(self, places: Mapping[str, Place]) -> Cluster:
        """New sessions on these members, not yet opened."""
        return Cluster(
            Seat(place.name, place.instance_id, place.address, self.server(place))
            for place in places.values()
        )


def dial(address: str, port: int) -> Callable[[], Any]:
    """Streams to a port of a host."""

    def opened() -> socket.socket:
        stream = socket.create_connection((address, port), CONNECT_SECONDS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    return opened


def local(path: str = SOCKET, user: str = AGENT) -> Server:
    """A session on this host's server through its socket, where the operating system vouches for
    who we are.
    """

    def opened() -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(CONNECT_SECONDS)
        stream.connect(path)
        return stream

    return Server("local", opened, user)

"""Sessions on the members of a cluster, as a watcher opens them: TLS to the admin port.

That port has room when clients hold every connection, and stays open in offline mode. A server
makes its own certificate when it first starts, so TLS hides what is said and cannot tell who
listens: that is for the network, where addresses cannot be taken over.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from flotilla.hosts.mysql import SOCKET, Server
from flotilla.mysql.accounts import AGENT, WATCHER
from flotilla.mysql.cluster import Cluster, Seat
from flotilla.rules.mysql_state import Place

ADMIN_PORT = 33062
# To connect; the limit of a statement is its caller's.
CONNECT_SECONDS = 0.5


def context() -> ssl.SSLContext:
    """TLS as hidden speech only, see above."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


class Sessions:
    """Makes sessions on members; the password of the account is in here and nowhere else."""

    def __init__(self, password: str, port: int = ADMIN_PORT) -> None:
        self._password = password
        self._port = port
        self._tls = context()

    def server(self, place: Place) -> Server:
        """A new session on a member, not yet opened."""
        return Server(
            place.name,
            dial(place.address, self._port),
            WATCHER,
            password=self._password,
            tls=self._tls,
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

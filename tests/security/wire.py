"""Runs on a host, as root: which of its packets arrive at others, and which of theirs here.

Given as text to ``python3 -c``, so it needs nothing but the standard library. The order comes on
stdin and the answer goes to stdout, both as JSON (see ``main``).

What counts is what the kernel did, and no service's opinion:
- a TCP port is through when the connection was made **or refused by a reset**: with no listener the
  host itself answers, and neither filter in between ever does (they drop, or reject by ICMP);
- other protocols have no answer, so their packets carry a mark, and the receiver looks for it in
  raw sockets, which see what the packet filter has let in, whatever listens;
- what leaves towards an address that nobody has is seen where packets are handed to the network
  card, after the filter.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TCP, UDP, ICMP = 6, 17, 1
_ALL, _OUTGOING = 3, 4  # ETH_P_ALL, PACKET_OUTGOING
_BUFFER = 4 << 20
_OPENED = (0, errno.ECONNREFUSED)
_REPEATS, _EVERY = 3, 0.3


class Dial:
    """Connects to many ports at once; ``through`` are those that were made or reset."""

    def __init__(self, targets: Mapping[str, Iterable[int]], source: str = "") -> None:
        self._poll, self._waiting = select.epoll(), {}
        self.through: dict[str, list[int]] = {address: [] for address in targets}
        for address, ports in targets.items():
            for port in ports:
                self._begin(address, port, source)

    def _begin(self, address: str, port: int, source: str) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        if source:
            sock.bind((source, 0))
        self._waiting[sock.fileno()] = sock, address, port
        error = sock.connect_ex((address, port))
        if error == errno.EINPROGRESS:
            self._poll.register(sock, select.EPOLLOUT | select.EPOLLERR)
        else:
            self._answered(sock.fileno(), error)

    def _answered(self, number: int, error: int) -> None:
        sock, address, port = self._waiting.pop(number)
        sock.close()
        if error in _OPENED:
            self.through[address].append(port)

    def look(self) -> None:
        """Take note of what has been answered by now."""
        for number, _ in self._poll.poll(0):
            self._poll.unregister(number)
            sock = self._waiting[number][0]
            self._answered(number, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def close(self) -> None:
        """Give up on those that nobody answers."""
        for sock, *_ in self._waiting.values():
            sock.close()
        self._poll.close()


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def _ping(mark: bytes) -> bytes:
    body = mark + b"\0" * (len(mark) % 2)
    return struct.pack("!BBHHH", 8, 0, _checksum(b"\x08\0\0\0\0\0\0\0" + body), 0, 0) + body


def say(targets: Iterable[Sequence[Any]], mark: bytes) -> None:
    """Send one marked packet each: (address, protocol, port or None). A refusal is an answer."""
    socks: dict[int, socket.socket] = {UDP: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)}
    for address, protocol, port in targets:
        if protocol not in socks:
            socks[protocol] = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        body = _ping(mark) if protocol == ICMP else mark
        with contextlib.suppress(OSError):
            socks[protocol].sendto(body, (address, port or 0))
    for sock in socks.values():
        sock.close()


def _port(packet: bytes) -> int | None:
    """The port that an IPv4 packet is for; None where its protocol has none."""
    start = (packet[0] & 15) * 4
    if packet[9] not in (TCP, UDP) or len(packet) < start + 4:
        return None
    return int(struct.unpack_from("!H", packet, start + 2)[0])


def _is_complaint(packet: bytes) -> bool:
    """Whether this is ICMP that quotes a packet of ours that went nowhere, and not a ping."""
    return packet[9] == ICMP and packet[(packet[0] & 15) * 4] != 8


class Ears:
    """What came in with our mark, and what left for ``outside``."""

    def __init__(self, protocols: Iterable[int], mark: bytes, outside: str) -> None:
        self._mark, self._outside = mark, socket.inet_aton(outside)
        self._raw = [socket.socket(socket.AF_INET, socket.SOCK_RAW, one) for one in protocols]
        self._card = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        self.heard: set[tuple[str, int, int | None]] = set()  # source address, protocol, port
        self.left: set[tuple[int, int | None]] = set()
        for sock in (*self._raw, self._card):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    def look(self) -> None:
        """Take note of what is there by now."""
        for sock in self._raw:
            for packet, _ in _all(sock):
                if self._mark in packet and not _is_complaint(packet):
                    source = socket.inet_ntoa(packet[12:16])
                    self.heard.add((source, packet[9], _port(packet)))
        for packet, way in _all(self._card):
            is_ip = len(packet) >= 20 and packet[0] >> 4 == 4
            if way[2] == _OUTGOING and is_ip and packet[16:20] == self._outside:
                self.left.add((packet[9], _port(packet)))


def _all(sock: socket.socket) -> Iterable[tuple[bytes, Any]]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sock.recvfrom(65535)


def main() -> None:
    """Do one order.

    ``at``: when all hosts begin (seconds since the epoch; ears are open before, or it is an error);
    ``seconds``: for how long; ``mark``: text in packets; ``dial``: by address the TCP ports;
    ``say``: [address, protocol, port or null]; ``hear``: protocols; ``outside``: an address that
    nobody has. Answers ``through``, ``heard`` and ``left``.
    """
    order = json.loads(sys.stdin.read())
    mark = order["mark"].encode()
    ears = Ears(order["hear"], mark, order["outside"])
    late = time.time() - order["at"]
    if late > 0:
        sys.exit(f"this host began {late:.1f} s late; others may have been heard by nobody")
    time.sleep(-late)
    dial = Dial(order["dial"])
    began, said = time.monotonic(), 0
    while (spent := time.monotonic() - began) < order["seconds"]:
        if said < _REPEATS and spent >= said * _EVERY:
            say(order["say"], mark)
            said += 1
        dial.look()
        ears.look()
        time.sleep(0.02)
    dial.close()
    found = {"through": dial.through, "heard": sorted(ears.heard, key=str)}
    json.dump(found | {"left": sorted(ears.left, key=str)}, sys.stdout)


if __name__ == "__main__":
    main()

"""This host's HAProxy: its servers by the runtime socket, and the same servers in its files.

What is written follows what HAProxy was seen to have, never the other way round, so that a reload
gives the set that serves now. A server is added at run time first and then written; it is taken out
of the file first and then deleted. A reload or a kill in between loses a server that has not served
yet, or one that serves no more.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flotilla import files
from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts.haproxy import Runtime, as_server, parse_stat
from flotilla.rules import haproxy_file
from flotilla.rules.discovery import DRAIN_BIT, MAINTENANCE_BIT, Kind, Order, Seen
from flotilla.rules.rotation import Server

BACKEND = "app"
CHECK_SECONDS = 20
RELOAD_SECONDS = 60
# A reload for servers that cannot be added by command; each one leaves an old process behind.
RELOAD_EVERY_SECONDS = 30.0
PEER_SECONDS = 1.0
# The age of the saved states says when HAProxy was last seen with them.
TOUCH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Places:
    """HAProxy's files on this host, and the commands that check and reload them."""

    config: Path = Path("/etc/haproxy/haproxy.cfg")
    states: Path = Path("/var/lib/flotilla/haproxy.states")
    check: tuple[str, ...] = ("/usr/sbin/haproxy", "-c", "-q", "-f")
    reload: tuple[str, ...] = ("/usr/local/lib/flotilla/haproxy_reload.py",)


class Balancer:
    """One HAProxy and its files; ``port`` is where the application's servers listen."""

    def __init__(
        self, runtime: Runtime, places: Places, *, port: int, clock: Callable[[], float]
    ) -> None:
        self._runtime = runtime
        self._places = places
        self._port = port
        self._clock = clock
        self._reloaded = -RELOAD_EVERY_SECONDS
        self._saved = ""
        self._touched = -TOUCH_SECONDS

    def servers(self) -> dict[str, Seen]:
        """What HAProxy has now. Raises FlotillaError when it does not say so."""
        admin = self._runtime.states(BACKEND)
        servers = self._runtime.servers(BACKEND)
        return {name: Seen(one, admin[name]) for name, one in servers.items() if name in admin}

    def everywhere(self) -> list[Mapping[str, Server] | None]:
        """The servers of every load balancer, this one first; None for one that does not answer."""
        here = {name: seen.server for name, seen in self.servers().items()}
        return [here, *(_statistics(peer) for peer in haproxy_file.peers(self._text()))]

    def out_bit(self) -> int:
        """How a server is taken out: a cookie leads clients back to one that is only drained."""
        return MAINTENANCE_BIT if self._runtime.is_sticky(BACKEND) else DRAIN_BIT

    def carry_out(self, orders: Sequence[Order], out_bit: int) -> list[str]:
        """Do it all; a sentence for each thing that HAProxy would not do (yet).

        Raises FlotillaError when HAProxy does not answer or takes a command amiss.
        """
        by_kind = {kind: [o for o in orders if o.kind is kind] for kind in Kind}
        out = "state maint" if out_bit == MAINTENANCE_BIT else "state drain"
        for order in by_kind[Kind.DRAIN]:
            self._runtime.set_state(order.name, out, backend=BACKEND)
        if back := [order.name for order in by_kind[Kind.RETURN]]:
            self._runtime.admit(*back, backend=BACKEND)
        return [*self._add(by_kind[Kind.ADD]), *self._delete(by_kind[Kind.DELETE])]

    def _add(self, orders: Sequence[Order]) -> list[str]:
        if not orders:
            return []
        text = self._text()
        try:
            wanted = {
                order.name: (
                    f"{order.address}:{self._port} {haproxy_file.options(text, order.name)}"
                )
                for order in orders
            }
        except ValueError as error:
            raise HostFailed(f"{self._places.config}: {error}") from None
        said = self._runtime.add(wanted, backend=BACKEND)
        there = self._runtime.servers(BACKEND)
        refused = {order.name: order.address for order in orders if order.name not in there}
        return self._by_reload(refused, said) if refused else []

    def _by_reload(self, refused: Mapping[str, str], said: str) -> list[str]:
        """HAProxy 2.6 takes no server with a cookie by command; the file and a reload it does.

        The reload starts servers that are new to it DOWN, so these wait for their checks as well.
        """
        names = ", ".join(sorted(refused))
        if self._clock() - self._reloaded < RELOAD_EVERY_SECONDS:
            return [f"{names}: to be added by the next reload ({said})"]
        self._reloaded = self._clock()
        present = {name: seen.address for name, seen in self.servers().items()}
        self._write({**present, **refused})
        self._run([*self._places.reload], RELOAD_SECONDS)
        return []

    def _delete(self, orders: Sequence[Order]) -> list[str]:
        if not orders:
            return []
        leaving = {order.name for order in orders}
        self._write({n: s.address for n, s in self.servers().items() if n not in leaving})
        refused = {name: self._runtime.delete(name, backend=BACKEND) for name in sorted(leaving)}
        return [f"{name} is not deleted yet: {why}" for name, why in refused.items() if why]

    def write_servers(self) -> bool:
        """Make the file's servers those that HAProxy has; whether it had to be changed.

        Raises FlotillaError, with the file as it was, when HAProxy would refuse it.
        """
        return self._write({name: seen.address for name, seen in self.servers().items()})

    def _write(self, servers: Mapping[str, str]) -> bool:
        config = self._places.config
        before = self._text()
        try:
            after = haproxy_file.with_servers(before, servers, port=self._port)
        except ValueError as error:
            raise HostFailed(f"{config}: {error}", next="fab fleet.configure --limit lb") from None
        if after == before:
            return False
        draft = config.with_suffix(".discovered")
        try:
            draft.write_text(after, encoding="utf-8")
            draft.chmod(config.stat().st_mode & 0o777)
            self._run([*self._places.check, str(draft)], CHECK_SECONDS)
            draft.replace(config)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _text(self) -> str:
        try:
            return self._places.config.read_text(encoding="utf-8")
        except OSError as error:
            raise HostFailed(f"{self._places.config} cannot be read: {error}") from error

    def save_states(self) -> None:
        """Keep the states where the next start of HAProxy finds them, however it comes about."""
        dump = self._runtime.dump()
        comparable = _without_times(dump)
        if comparable != self._saved:
            files.replace(self._places.states, dump)
            self._saved, self._touched = comparable, self._clock()
        elif self._clock() - self._touched >= TOUCH_SECONDS:
            os.utime(self._places.states)
            self._touched = self._clock()

    def _run(self, command: Sequence[str], seconds: float) -> None:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise FlotillaError(f"{command[0]} failed: {error}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise FlotillaError(f"{command[0]} exited {done.returncode}: {said[-1]}")


def _statistics(peer: str) -> dict[str, Server] | None:
    """What another load balancer says of its servers; None when it does not."""
    try:
        with urllib.request.urlopen(f"http://{peer}/;csv", timeout=PEER_SECONDS) as page:
            rows = parse_stat(page.read().decode(errors="replace"), peer)
    except (OSError, FlotillaError):
        return None
    return {row["svname"]: as_server(row) for row in rows if row["pxname"] == BACKEND}


def _without_times(dump: str) -> str:
    """A dump without the seconds since the last change, which differ in each."""
    lines = dump.splitlines()
    header = next(line for line in lines if line.startswith("# be_id")).lstrip("# ").split()
    column = header.index("srv_time_since_last_change")
    cut = (line.split() for line in lines if not line.startswith("#"))
    return "\n".join(" ".join(words[:column] + words[column + 1 :]) for words in cut)

"""Both load balancers with their certificate services, an authority, and an AWS account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from haproxyd.authority import Pebble, pebble
from haproxyd.certificates import NAME, certificate
from haproxyd.edge import ADDRESSES, Edge, running
from haproxyd.ordering import orderer, store_at
from unit.ports import free_port

from flotilla.certificate.follow import Follower
from flotilla.certificate.order import Orderer, Place
from flotilla.certificate.service import Service
from flotilla.certificate.store import Store

# What :443 begins with; nobody can trust it.
FIRST = 1001
TURN_SECONDS = 0.1


@dataclass
class Pair:
    """``owner`` is who has the address; services of ``stopped`` ones take no turns."""

    edges: dict[str, Edge]
    authority: Pebble
    api: str
    folder: Path
    store: Store
    owner: str = "lb-1"
    stopped: set[str] = field(default_factory=set)
    # Added to the services' clock.
    ahead: float = 0.0

    @property
    def places(self) -> list[Place]:
        return [Place(name, edge.host, edge.port) for name, edge in self.edges.items()]

    def orderer(self) -> Orderer:
        """One that orders here, by the services' clock."""
        asked = self._asked(NAME, self.authority.directory, "")
        return orderer(asked, now=lambda: time.time() + self.ahead)

    def order_elsewhere(self, die_at: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own, which ends itself before that step; "" for never."""
        asked = json.dumps(self._asked(NAME, self.authority.directory, die_at))
        here = Path(__file__).parents[1]
        paths = [str(here), str(here.parent / "scripts"), *sys.path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        argv = [sys.executable, str(Path(__file__).with_name("ordering.py")), asked]
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def served(self) -> dict[str, str]:
        """By load balancer, the serial number of what clients get; "" while it is being changed."""
        found = {n: e.runtime().certificates() for n, e in self.edges.items()}
        return {n: one[0].serial.lstrip("0") if one else "" for n, one in found.items()}

    def report(self, name: str) -> dict[str, object]:
        """What a service said last."""
        found: dict[str, object] = json.loads((self.edges[name].folder / "report.json").read_text())
        return found

    def _asked(self, domain: str, directory: str, die_at: str) -> dict[str, object]:
        return {
            "api": self.api,
            "directory": directory,
            "domain": domain,
            "places": [asdict(one) for one in self.places],
            "die_at": die_at,
        }


@contextmanager
def pair(folder: Path, api: str) -> Iterator[Pair]:
    """Two load balancers as fleet.lb.acme makes them, and an authority that asks lb-1.

    Nobody follows or orders before ``services`` are run.
    """
    with ExitStack() as stack:
        port, edges = free_port(), {}
        for name in ADDRESSES:
            (folder / name).mkdir()
            edges[name] = stack.enter_context(
                running(
                    folder / name,
                    name=name,
                    port=port,
                    pem=certificate(FIRST),
                    haproxy_acme_enabled=True,
                )
            )
        authority = stack.enter_context(
            pebble(folder / "authority", port=port, address=edges["lb-1"].host)
        )
        yield Pair(edges, authority, api, folder, store_at(api))


@contextmanager
def services(pair: Pair, *, orders: bool = True) -> Iterator[None]:
    """The service of each load balancer, at work during the block."""
    over = threading.Event()

    def work(name: str, edge: Edge) -> None:
        service = Service(
            store_at(pair.api),
            Follower(edge.runtime(), NAME, certificate=edge.pem, map_file=edge.acme_map),
            pair.orderer(),
            NAME,
            edge.folder / "report.json",
            is_owner=lambda: orders and name == pair.owner,
            now=lambda: time.time() + pair.ahead,
        )
        while not over.wait(TURN_SECONDS):
            if name not in pair.stopped:
                service.turn()

    threads = [
        threading.Thread(target=work, args=(name, edge), daemon=True)
        for name, edge in pair.edges.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(20)

#!/usr/bin/env python3
"""How long it takes to change 1,000 servers on two load balancers and to read all of them back.

Two real HAProxy processes beside those that serve, with the code every deploy uses. Without
--fleet they run here; with it, one on each load balancer of the environment, asked over SSH
through the bastion. A round drains every server on both (or returns them all) and is over when
both have shown every server in the new state. Prints a table on stderr and one JSON
object on stdout; exits 1 when the worst round takes longer than the bar.

    benchmarks/control_path.py --servers 1000 --repeats 10 [--fleet]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from flotilla import config, inventory
from flotilla.deploy.world import Balancers
from flotilla.hosts.haproxy import Runtime, local
from flotilla.hosts.haproxy_session import Session
from flotilla.hosts.ssh import Runner, prepare
from flotilla.wait import until

BAR_SECONDS = 1.0
FOLDER = "/run/flotilla-benchmark"
UNIT = "flotilla-benchmark-haproxy"
# What a load balancer of a fleet of that size would hold; checks are spread over ten seconds.
CONFIG = """\
global
    stats socket {socket} mode 600 level admin
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend answer
    bind unix@{folder}/answer.sock
    http-request return status 200
backend app
    balance leastconn
    option httpchk GET /healthz
    default-server check inter 10s fall 2 rise 2 slowstart 10s maxconn 200
"""


def main() -> int:
    """Measure, tell, and compare with the bar."""
    options = parsed()
    with ExitStack() as undo:
        where = fleet(options.servers) if options.fleet else here(options.servers)
        runtimes = undo.enter_context(where)
        balancers = Balancers(runtimes)
        names = [name(number) for number in range(options.servers)]
        await_up(balancers, names)
        rounds = [one_round(balancers, names, state) for state in states(options.repeats)]
        versions = {lb: runtime.info()["Version"] for lb, runtime in runtimes.items()}
    seconds = [sum(parts) for parts in rounds]
    told = {
        "servers": options.servers,
        "balancers": versions,
        "over": "SSH" if options.fleet else "a socket here",
        "rounds": len(rounds),
        "seconds": spread(seconds),
        "set_seconds": spread([parts[0] for parts in rounds]),
        "read_back_seconds": spread([parts[1] for parts in rounds]),
        "bar_seconds": BAR_SECONDS,
        "each": [round(one, 3) for one in seconds],
    }
    for key in ("seconds", "set_seconds", "read_back_seconds"):
        figures = told[key]
        say(f"{key:18} median {figures['median']:.3f}  worst {figures['worst']:.3f}")
    print(json.dumps(told))
    return 0 if max(seconds) <= BAR_SECONDS else 1


def states(repeats: int) -> Iterator[tuple[str, str]]:
    """The order to give, and the status that shows it was carried out."""
    for _ in range(repeats):
        yield ("state drain", "DRAIN")
        yield ("state ready", "UP")


def one_round(
    balancers: Balancers, names: list[str], state: tuple[str, str]
) -> tuple[float, float]:
    """Seconds to set, and seconds until every server was read back in the new state."""
    order, status = state
    begun = time.monotonic()
    balancers.order_many({one: [order] for one in names})
    middle = time.monotonic()
    until(lambda: everywhere(balancers, names, status), seconds=30, every=0.02)
    return middle - begun, time.monotonic() - middle


def everywhere(balancers: Balancers, names: list[str], status: str) -> bool:
    """Whether both load balancers show every server in that state."""
    seen = balancers.servers()
    return all(servers[one].status == status for servers in seen.values() for one in names)


def await_up(balancers: Balancers, names: list[str]) -> None:
    """Checks of a fresh process are spread over their interval."""
    until(lambda: everywhere(balancers, names, "UP"), seconds=60, every=0.5)


@contextmanager
def here(servers: int) -> Iterator[dict[str, Runtime]]:
    """Two processes on this machine, in a folder of their own."""
    if not shutil.which("haproxy", path="/usr/sbin:/usr/bin"):
        sys.exit("haproxy is not installed here; measure on the fleet: --fleet")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        runtimes = {}
        for lb in ("here-1", "here-2"):
            place = Path(folder, lb)
            place.mkdir()
            (place / "haproxy.cfg").write_text(configuration(str(place), servers))
            # It says a line for every server and change.
            command = ["/usr/sbin/haproxy", "-q", "-f", str(place / "haproxy.cfg")]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            undo.callback(process.wait)
            undo.callback(process.terminate)
            until((place / "admin.sock").exists, seconds=10, every=0.05)
            runtimes[lb] = Runtime(lb, local(place / "admin.sock"))
        yield runtimes


@contextmanager
def fleet(servers: int) -> Iterator[dict[str, Runtime]]:
    """One process more on each load balancer of the environment."""
    settings = config.load()
    snapshot = inventory.load(settings, refresh=True)
    prepare(settings, snapshot)
    hosts = [host.name for host in snapshot.by_role("lb")]
    text = configuration(FOLDER, servers).encode()
    with Runner(settings, snapshot) as runner:
        try:
            for host in hosts:
                runner.run(host, f"mkdir -m 700 -p {FOLDER}", sudo=True)
                runner.put(host, text, f"{FOLDER}/haproxy.cfg")
                start = f"systemd-run -q --unit={UNIT} haproxy -q -f {FOLDER}/haproxy.cfg"
                runner.run(host, start, sudo=True)
                runner.run(
                    host, f"until test -S {FOLDER}/admin.sock; do sleep 0.1; done", sudo=True
                )
            socket = f"{FOLDER}/admin.sock"
            yield {host: Runtime(host, Session(runner, host, path=socket).ask) for host in hosts}
        finally:
            for host in hosts:
                end = f"systemctl stop {UNIT}; rm -rf {FOLDER}"
                runner.run(host, end, sudo=True, check=False)


def configuration(folder: str, servers: int) -> str:
    """The file for one process."""
    lines = [f"    server {name(one)} unix@{folder}/answer.sock" for one in range(servers)]
    head = CONFIG.format(socket=f"{folder}/admin.sock", folder=folder)
    return head + "\n".join(lines) + "\n"


def name(number: int) -> str:
    """As hosts are called."""
    return f"app-{number + 1}"


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and worst."""
    return {"median": round(statistics.median(seconds), 3), "worst": round(max(seconds), 3)}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=10, help="each is two rounds")
    parser.add_argument("--fleet", action="store_true", help="on the fleet's load balancers")
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

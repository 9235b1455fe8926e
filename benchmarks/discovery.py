#!/usr/bin/env python3
"""How long a load balancer takes to follow 1,000 application hosts that come, and that leave.

One real HAProxy on this machine, with the rule, the commands and the files that
flotilla-discovery uses. A round begins without servers: all hosts are added and read back, and
are in the checked configuration; all are UP by their own checks; then a quarter leaves and is
drained and deleted. Prints a table on stderr and one JSON object on stdout; exits 1 when adding
and reading back takes longer than the bar in the worst round.

    benchmarks/discovery.py --servers 1000 --repeats 5
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from flotilla.discovery.balancer import Balancer, Places
from flotilla.hosts.haproxy import Runtime, local
from flotilla.rules import haproxy_file
from flotilla.rules.discovery import Decision, Host, Memory, decide
from flotilla.wait import until

T = TypeVar("T")
BAR_SECONDS = 1.0
PORT = 18999
HAPROXY = "/usr/sbin/haproxy"
# Every address of the loopback answers; checks are as frequent as on a real load balancer of that
# size: ten thousand a second would be a benchmark of this machine.
CONFIG = f"""\
global
    stats socket {{folder}}/admin.sock mode 600 level admin
    maxconn 8000
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend answer
    bind 0.0.0.0:{PORT}
    tcp-request connection reject unless {{{{ dst 127.0.0.0/8 }}}}
    http-request return status 200
backend app
    balance random(2)
    option httpchk GET /healthz
    default-server check inter 10s fastinter 1s downinter 1s fall 2 rise 2 weight 100 maxconn 200
{haproxy_file.BEGIN}
{haproxy_file.END}
"""


def main() -> int:
    """Measure, tell, and compare with the bar."""
    options = parsed()
    if not Path(HAPROXY).exists():
        sys.exit("haproxy is not installed here")
    rounds = [one_round(options.servers) for _ in range(options.repeats)]
    told: dict[str, object] = {"servers": options.servers, "rounds": len(rounds)}
    for key in rounds[0]:
        seconds = [one[key] for one in rounds]
        told[key] = {"median": statistics.median(seconds), "worst": max(seconds)}
        say(f"{key:22} median {statistics.median(seconds):.3f}  worst {max(seconds):.3f}")
    print(json.dumps(told | {"bar_seconds": BAR_SECONDS, "each": rounds}))
    return 0 if max(one["added_and_read_back"] for one in rounds) <= BAR_SECONDS else 1


def one_round(count: int) -> dict[str, float]:
    """Seconds for each part."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "haproxy.cfg"
        config.write_text(CONFIG.format(folder=folder))
        process = subprocess.Popen([HAPROXY, "-q", "-f", config], stderr=subprocess.DEVNULL)
        try:
            until((folder / "admin.sock").exists, seconds=10, every=0.05)
            places = replace(Places(), config=config, states=folder / "states")
            runtime = Runtime("here", local(folder / "admin.sock"))
            return measured(Balancer(runtime, places, port=PORT, clock=time.monotonic), count)
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def measured(balancer: Balancer, count: int) -> dict[str, float]:
    """A round on a HAProxy without servers."""
    hosts = [
        Host(f"app-{n}", f"127.8.{n // 250}.{n % 250 + 1}", instance_id=f"i-{n}")
        for n in range(count)
    ]
    seconds = {}
    seconds["added_and_read_back"], _ = timed(lambda: settled(balancer, hosts, len(hosts)))
    seconds["written_and_checked"], _ = timed(balancer.write_servers)
    seconds["up_by_own_checks"], _ = timed(
        lambda: until(lambda: serving(balancer) == count, seconds=60, every=0.1)
    )
    seconds["look_without_a_change"], _ = timed(lambda: look(balancer, hosts, Memory()))
    seconds["states_saved"], _ = timed(balancer.save_states)
    left = [
        replace(host, state="terminated") if number % 4 == 0 else host
        for number, host in enumerate(hosts)
    ]
    known = Memory(instances={host.name: host.instance_id for host in hosts})
    seconds["quarter_drained"], memory = timed(lambda: look(balancer, left, known).memory)
    seconds["quarter_deleted"], _ = timed(lambda: look(balancer, left, memory))
    assert len(balancer.servers()) == count - len(hosts[::4])
    return {key: round(value, 3) for key, value in seconds.items()}


def settled(balancer: Balancer, hosts: list[Host], count: int) -> None:
    """Look once, and see that all servers are there."""
    look(balancer, hosts, Memory())
    assert len(balancer.servers()) == count


def look(balancer: Balancer, hosts: list[Host], memory: Memory) -> Decision:
    """What the service does with one answer of EC2."""
    decision = decide(hosts, balancer.servers(), memory)
    refused = balancer.carry_out(decision.orders, balancer.out_bit())
    assert not refused, refused
    return decision


def serving(balancer: Balancer) -> int:
    """How many servers are UP."""
    return sum(seen.is_serving for seen in balancer.servers().values())


def timed(act: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what came of it."""
    begun = time.monotonic()
    result = act()
    return time.monotonic() - begun, result


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

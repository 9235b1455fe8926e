#!/usr/bin/env python3
"""What our load balancer costs: throughput and latency of a static file, by four ways.

    benchmarks/load_balancer.py --yes [--repeats 5] [--seconds 8]

On a load balancer of the standing fleet, with `wrk` on the same host: nginx of one application host
directly, our HAProxy in front of it, HAProxy with the configuration that its Debian package brings,
in front of the same one host, and the floor: HAProxy that only passes bytes on, reads no request
and writes no log. Keep-alive, 32 connections; latency with a single one. Every repeat goes through
all four, so that a machine that is busy for a while is so for all.

Where `wrk`, HAProxy and nginx share the same processors, no proxy reaches what nginx does alone:
the floor says how much of it there is to be had.

The other application hosts are drained meanwhile: three nginx behind one HAProxy are no comparison.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from flotilla import config, inventory
from flotilla.hosts.haproxy import Runtime, over_ssh
from flotilla.hosts.ssh import Runner, prepare
from flotilla.snapshot import Host

THROUGHPUT_BAR, STOCK_BAR, LATENCY_BAR_MS = 0.85, 1.0, 0.5
CONNECTIONS = 32
AUTHORITY = "/etc/haproxy/authority.pem"
STOCK_PORT, FLOOR_PORT = 18081, 18082
# What it takes to serve one host.
_SERVES = """
frontend bench
    bind 127.0.0.1:{port}
    default_backend app
backend app
    server app {address}:443 check ssl verify required ca-file {authority} verifyhost {name}
"""
_FLOOR = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 50s
    timeout server 50s
"""
# The journal's socket in the chroot, as the package's unit binds it: its log is half of its cost.
_SOCKET = "--property=BindReadOnlyPaths=/dev/log:/var/lib/haproxy/dev/log"
_LATENCY = re.compile(r"^\s+50%\s+([0-9.]+)(us|ms|s)", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec:\s+([0-9.]+)", re.MULTILINE)
_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)")
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def main() -> int:
    """Measure, and print."""
    options = parsed()
    if not options.yes:
        say("It installs wrk on a load balancer and drains application hosts. Next: add --yes")
        return 3
    settings = config.load()
    snapshot = inventory.load(settings, refresh=True)
    prepare(settings, snapshot)
    page = f"/{settings.application.static_dir}/{options.file}"
    with Runner(settings, snapshot) as runner:
        balancer, app = snapshot.by_role("lb")[0], snapshot.by_role("app")[0]
        with peers(runner, balancer, app), alone(runner, balancer, snapshot.by_role("app"), app):
            ways = {
                "nginx": f"https://{app.private_ip}{page}",
                "ours": f"http://127.0.0.1{page}",
                "stock": f"http://127.0.0.1:{STOCK_PORT}{page}",
                "floor": f"http://127.0.0.1:{FLOOR_PORT}{page}",
            }
            each = [
                {way: measured(runner, balancer, url, options.seconds) for way, url in ways.items()}
                for _ in range(options.repeats)
            ]
    told = summed(each)
    table(told)
    print(json.dumps(told))
    return 1 if told["missed"] else 0


@contextmanager
def peers(runner: Runner, balancer: Host, app: Host) -> Iterator[None]:
    """Two more HAProxy: with the package's own configuration, and the floor."""
    runner.run(balancer, "apt-get -qq install -y wrk", sudo=True, seconds=300)
    stock = (
        "cd /tmp && rm -rf bench && mkdir bench && cd bench && apt-get -qq download haproxy"
        " && dpkg-deb --fsys-tarfile haproxy_*.deb | tar -xO ./etc/haproxy/haproxy.cfg"
        # Of the socket there can be one, and systemd-run wants it in the foreground.
        " | sed '/stats socket/d; /daemon/d'"
    )
    read = runner.run(balancer, f"bash -c {quoted(stock)}", sudo=True, seconds=120).stdout
    proved = {"address": app.private_ip, "authority": AUTHORITY, "name": config.load().zone("app")}
    texts = {
        "stock": read + _SERVES.format(port=STOCK_PORT, **proved),
        "floor": _FLOOR + _SERVES.format(port=FLOOR_PORT, **proved),
    }
    try:
        for name, text in texts.items():
            path = f"/run/bench-{name}-haproxy.cfg"
            runner.run(balancer, f"tee {path}", stdin=text, sudo=True)
            unit = f"systemd-run --quiet --collect --unit=bench-{name} {_SOCKET}"
            runner.run(balancer, f"{unit} haproxy -db -f {path}", sudo=True)
        yield
    finally:
        ended = "systemctl stop bench-stock bench-floor; rm -rf /tmp/bench /run/bench-*-haproxy.cfg"
        runner.run(balancer, ended, sudo=True)


@contextmanager
def alone(runner: Runner, balancer: Host, apps: list[Host], app: Host) -> Iterator[None]:
    """One server in rotation on this load balancer."""
    runtime = Runtime(balancer.name, over_ssh(runner, balancer.name))
    others = [host.name for host in apps if host.name != app.name]
    try:
        for name in others:
            runtime.command(f"set server app/{name} state drain")
        yield
    finally:
        for name in others:
            runtime.command(f"set server app/{name} state ready")


def measured(runner: Runner, balancer: Host, url: str, seconds: int) -> dict[str, float]:
    """Requests a second on many connections, and the median latency on one, in milliseconds."""
    busy = wrk(runner, balancer, CONNECTIONS, seconds, url)
    calm = wrk(runner, balancer, 1, max(2, seconds // 2), url)
    found = _LATENCY.search(calm)
    rate = _RATE.search(busy)
    if not found or not rate or _BAD.search(busy) or _BAD.search(calm):
        raise SystemExit(f"{url}: not every answer was a good one:\n{busy}\n{calm}")
    return {"rate": float(rate[1]), "p50_ms": float(found[1]) * _MS[found[2]]}


def wrk(runner: Runner, balancer: Host, connections: int, seconds: int, url: str) -> str:
    """The output of one run."""
    words = f"wrk --latency -t1 -c{connections} -d{seconds}s {url}"
    return runner.run(balancer, words, seconds=seconds + 30).stdout


def summed(each: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Ratios within each repeat, their median and worst; and the bars that were missed."""
    to_nginx = [one["ours"]["rate"] / one["nginx"]["rate"] for one in each]
    floor = [one["floor"]["rate"] / one["nginx"]["rate"] for one in each]
    to_stock = [one["ours"]["rate"] / one["stock"]["rate"] for one in each]
    added = [one["ours"]["p50_ms"] - one["nginx"]["p50_ms"] for one in each]
    told: dict[str, Any] = {
        "repeats": len(each),
        "to_nginx": spread(to_nginx, min),
        "floor_to_nginx": spread(floor, min),
        "to_stock": spread(to_stock, min),
        "added_p50_ms": spread(added, max),
        "each": each,
    }
    told["missed"] = [
        *["throughput / nginx"] * (told["to_nginx"]["median"] < THROUGHPUT_BAR),
        *["throughput / stock"] * (told["to_stock"]["median"] < STOCK_BAR),
        *["added latency"] * (told["added_p50_ms"]["median"] > LATENCY_BAR_MS),
    ]
    return told


def spread(values: list[float], worst: Any) -> dict[str, float]:
    """Median and worst."""
    return {"median": round(statistics.median(values), 3), "worst": round(worst(values), 3)}


def table(told: Mapping[str, Any]) -> None:
    """For people."""
    for way in ("nginx", "ours", "stock", "floor"):
        rates = [one[way]["rate"] for one in told["each"]]
        latencies = [one[way]["p50_ms"] for one in told["each"]]
        say(f"{way:6} {statistics.median(rates):9.0f}/s  p50 {statistics.median(latencies):.3f} ms")
    for name in ("to_nginx", "floor_to_nginx", "to_stock", "added_p50_ms"):
        say(f"{name:14} median {told[name]['median']}, worst {told[name]['worst']}")
    say(f"missed: {', '.join(told['missed']) or 'nothing'}")


def quoted(text: str) -> str:
    """For a shell."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--file", default="style.css")
    parser.add_argument("--yes", action="store_true")
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

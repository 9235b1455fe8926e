#!/usr/bin/env python3
"""What TLS between load balancer and application host costs the guestbook: throughput, as a ratio.

    benchmarks/tls_cost.py --yes [--repeats 5] [--seconds 8] [--path /]

On a load balancer of the standing fleet: a second HAProxy with two ways to the same application
host, kept alive, by TLS as the fleet has it, and without. For the second way nginx there listens on
port 80 as well meanwhile, which the security groups open still. Every repeat goes through both, so
that a machine that is busy for a while is so for both. nginx has its own file again afterwards.

Exit 0 within the bar, 1 missed, 3 nothing done.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from load_balancer import _BAD, _RATE, AUTHORITY, CONNECTIONS, wrk

from flotilla import config, inventory
from flotilla.hosts.ssh import Runner, prepare
from flotilla.snapshot import Host

BAR = 0.85
PORTS = {"tls": 18082, "plain": 18083}
FILE = "/run/bench-tls-haproxy.cfg"
_TEXT = """
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    http-reuse safe
listen tls
    bind 127.0.0.1:18082
    server app {address}:443 ssl verify required ca-file {authority} verifyhost {name}
listen plain
    bind 127.0.0.1:18083
    server app {address}:80
"""
_OPEN = r"""
set -e
sed -E 's/^( +)listen 443 ssl.*/&\n\1listen 80;/' /etc/nginx/nginx.conf > /run/bench-nginx.conf
nginx -t -q -c /run/bench-nginx.conf
cp -p /etc/nginx/nginx.conf /run/bench-nginx.before
cp /run/bench-nginx.conf /etc/nginx/nginx.conf
systemctl reload nginx
sleep 1
"""
# systemd-run returns before HAProxy has opened its ports.
_LISTENS = "timeout 10 sh -c 'until ss -ltnH sport = :{port} | grep -q .; do sleep 0.1; done'"
_BACK = """
rm -f /run/bench-nginx.conf
test -f /run/bench-nginx.before || exit 0
cp -p /run/bench-nginx.before /etc/nginx/nginx.conf
systemctl reload nginx
rm /run/bench-nginx.before
"""


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--path", default="/", help="what is asked for")
    parser.add_argument("--yes", action="store_true")
    options = parser.parse_args()
    if not options.yes:
        sys.stderr.write("It opens port 80 of an application host for a while. Next: add --yes\n")
        return 3
    settings = config.load()
    snapshot = inventory.load(settings, refresh=True)
    prepare(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        balancer, app = snapshot.by_role("lb")[0], snapshot.by_role("app")[0]
        with both(runner, balancer, app, settings.zone("app")):
            urls = {way: f"http://127.0.0.1:{port}{options.path}" for way, port in PORTS.items()}
            each = [
                {way: rate(runner, balancer, url, options.seconds) for way, url in urls.items()}
                for _ in range(options.repeats)
            ]
    ratios = [one["tls"] / one["plain"] for one in each]
    told = {"median": round(statistics.median(ratios), 3), "worst": round(min(ratios), 3)}
    missed = told["median"] < BAR
    json.dump({"ratio": told, "bar": BAR, "missed": missed, "each": each}, sys.stdout)
    sys.stdout.write("\n")
    return 1 if missed else 0


@contextmanager
def both(runner: Runner, balancer: Host, app: Host, name: str) -> Iterator[None]:
    """Both ways, at the same time."""
    runner.run(balancer, "apt-get -qq install -y wrk", sudo=True, seconds=300)
    text = _TEXT.format(address=app.private_ip, authority=AUTHORITY, name=name)
    runner.run(balancer, f"tee {FILE}", stdin=text, sudo=True)
    try:
        runner.run(app, f"sh -c {shlex.quote(_OPEN)}", sudo=True)
        start = f"systemd-run --quiet --collect --unit=bench-tls haproxy -db -f {FILE}"
        runner.run(balancer, start, sudo=True)
        for port in PORTS.values():
            runner.run(balancer, _LISTENS.format(port=port), seconds=15)
        yield
    finally:
        runner.run(balancer, f"sh -c 'systemctl stop bench-tls; rm -f {FILE}'", sudo=True)
        runner.run(app, f"sh -c {shlex.quote(_BACK)}", sudo=True)


def rate(runner: Runner, balancer: Host, url: str, seconds: int) -> float:
    """Requests a second."""
    said = wrk(runner, balancer, CONNECTIONS, seconds, url)
    found = _RATE.search(said)
    if not found or _BAD.search(said):
        raise SystemExit(f"{url}: not every answer was a good one:\n{said}")
    return float(found[1])


if __name__ == "__main__":
    sys.exit(main())

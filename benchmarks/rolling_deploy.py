#!/usr/bin/env python3
"""Three ways to deploy, side by side on the same fleet under the same load.

ours     fab deploy.run, without soak
stock    Ansible: serial, and community.general.haproxy as its documentation shows it
blind    Ansible: symlink and restart in the same batches, no load balancer is told

Each way deploys in turn, batches 1 then 50 %, between two versions that differ in name only, while
clients of every kind send requests. Counted: failed requests, seconds of the whole command, p99
before and during. The operator's commands run behind the fleet, whose hosts are on this machine.

Stock Ansible polls every 5 s, which is the module's default and what its documentation shows (for
draining it shows a minute); "tuned" is the same playbook with 1 s.

The limit is what no way can beat: for every batch, the time its slowest host needs to get idle,
the application's start, and the load balancers' own fresh checks. It is measured under the same
load, in the same batches, by the shortest path there is: no command, no SSH in between is counted.
What its clients see is what the starts alone cost on hosts that share this machine's processors.

Prints a table on stderr and one JSON object on stdout; exits 1 when ours failed a request or missed
a bar.

    benchmarks/rolling_deploy.py --repeats 3 --rate 200 [--hosts 6]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from flotilla import ansible, config, deploy, environment, inventory, release, scale
from flotilla.aws import edge
from flotilla.deploy.survey import look
from flotilla.deploy.world import World
from flotilla.hosts import access
from flotilla.hosts.ssh import Runner
from flotilla.priority import go_behind
from flotilla.rules.deploy import Options, batch_sizes
from flotilla.rules.drill import ratio, spread
from flotilla.rules.release import default_version
from flotilla.rules.rotation import why_not_fit, why_not_idle, why_not_up
from flotilla.settings import Settings
from flotilla.traffic import Background
from flotilla.wait import until

ROOT = Path(__file__).resolve().parents[1]
BATCHES = ("1", "50%")
# Ours against the limit, and against stock Ansible.
LIMIT_BAR, STOCK_BAR = 1.5, 0.5
P99_BAR = 2.0
# Seconds between two looks: the module's default, and as often as whole seconds allow.
DEFAULT_WAIT, TUNED_WAIT = 5, 1
WARM_SECONDS, CALM_SECONDS = 4.0, 10.0
SETTLE_SECONDS = 60.0
# After its restart, until it answers as ready: measured on the host, so that SSH is not in it.
START = """\
began=$(date +%s.%N); systemctl restart app
own="--cacert /etc/app/authority.pem https://$(hostname -I | cut -d' ' -f1)"
until curl -fsS -o /dev/null $own/readyz 2>/dev/null; do sleep 0.02; done
python3 -c "print($(date +%s.%N) - $began)"
"""

Command = Callable[[Settings, release.Release], list[str]]


@dataclass
class Way:
    """One way to deploy: its command line, and what its runs showed."""

    command: Command
    runs: list[dict[str, Any]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Sums, and median and worst of each figure."""
        keys = ("seconds", "p99_before_ms", "p99_during_ms", "p99_ratio", "late_ms")
        return {
            "failed": sum(run["failed"] for run in self.runs),
            "failed_each": spread(run["failed"] for run in self.runs),
            "served": sum(run["served"] for run in self.runs),
            "lost": sum(run["lost"] for run in self.runs),
            **{key: spread(run[key] for run in self.runs) for key in keys},
            "each": self.runs,
        }


def ours(_: Settings, wanted: release.Release) -> list[str]:
    """What fab deploy.run does, in a process of its own as well, without soak."""
    return [sys.executable, __file__, "--deploy", wanted.version]


def deployed(settings: Settings, version: str) -> int:
    """The process of ``ours``: 0 no request failed, 1 some did, 2 it was not deployed."""
    quick = settings.deploy.model_copy(update={"soak_seconds": 0})
    outcome = deploy.deploy(
        settings.model_copy(update={"deploy": quick}),
        version,
        Options(BATCHES, adopt=True),
        confirmed=lambda _: None,
        said=lambda _: None,
    )
    print(json.dumps(outcome.as_dict()))
    return (1 if outcome.failed else 0) if outcome.result == "done" else 2


def play(name: str, wait: int) -> Command:
    """A playbook of this folder that looks again every ``wait`` seconds."""

    def command(settings: Settings, wanted: release.Release) -> list[str]:
        given = {"version": wanted.version, "sha256": wanted.sha256, "wait_interval": wait}
        book = f"benchmarks/rolling_deploy_plays/{name}.yml"
        inventories = f"inventory/{settings.env}"
        return ["ansible-playbook", "-i", inventories, book, "--extra-vars", json.dumps(given)]

    return command


def main() -> int:
    """Run every way in turn, as often as asked for."""
    options = parsed()
    settings = config.load()
    if options.deploy:
        return deployed(settings, options.deploy)
    go_behind()
    ways = {
        "ours": Way(ours),
        "stock": Way(play("stock", DEFAULT_WAIT)),
        "tuned": Way(play("stock", TUNED_WAIT)),
        "blind": Way(play("blind", TUNED_WAIT)),
    }
    chosen = {name: way for name, way in ways.items() if name in options.ways.split(",")}
    with ExitStack() as undo:
        if options.hosts:
            undo.enter_context(scale.at(settings, options.hosts, said=say))
        hosts, releases = prepared(settings)
        limit = limit_of(settings, options)
        for number in range(options.repeats):
            for name, way in chosen.items():
                way.runs.append(one_run(settings, way, releases[0], options))
                releases.reverse()
                say(f"{number + 1}/{options.repeats} {name}: {line(way.runs[-1])}")
    told = compared(chosen, limit, options, hosts)
    table(told)
    print(json.dumps(told))
    return 1 if told["missed"] else 0


def prepared(settings: Settings) -> tuple[int, list[release.Release]]:
    """How many hosts, and two releases of the same sources.

    Every host has both, so that no run pays for a download; the fleet runs the second.
    """
    stamp = default_version(datetime.now(UTC))
    versions = [f"bench-{letter}-{stamp}" for letter in "ab"]
    releases = [release.publish(settings, version).release for version in versions]
    snapshot = inventory.load(settings, refresh=True)
    access.prepare(settings, snapshot)
    for one in releases:
        done = subprocess.run(
            ours(settings, one),
            cwd=ROOT,
            env=variables(settings),
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode not in (0, 1):
            sys.exit(f"{one.version} could not be brought to the fleet: exit {done.returncode}")
    return len(snapshot.by_role("app")), releases


def one_run(
    settings: Settings, way: Way, wanted: release.Release, options: argparse.Namespace
) -> dict[str, Any]:
    """One deploy under traffic."""
    command = way.command(settings, wanted)
    with clients(settings, options.rate) as traffic:
        time.sleep(CALM_SECONDS)
        traffic.mark("during")
        begun = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=variables(settings),
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - begun
        traffic.mark("after")
        settled(settings)
        seen = traffic.stop()
    if done.returncode not in (0, 1):  # 1: ours says so when a request failed
        sys.exit(
            f"{command[0]} exited {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    phases = seen["phases"]
    p99 = {name: phases[name]["p99_ms"] for name in ("before", "during")}
    return {
        "seconds": round(seconds, 2),
        "served": seen["served"],
        "failed": seen["failed"],
        "retried": seen["retried"],
        "lost": seen["lost"],
        "failures": seen["failures"],
        "p99_before_ms": p99["before"],
        "p99_during_ms": p99["during"],
        "p99_ratio": ratio(p99),
        "late_ms": phases["during"]["late_ms"],
        "deploy_seconds": json.loads(done.stdout)["seconds"]
        if done.stdout.startswith("{")
        else None,
    }


@contextmanager
def clients(settings: Settings, rate: int) -> Iterator[Background]:
    """Warm clients, in phase "before"."""
    with Background("--url", edge.url(settings), "--rate", str(rate), "--verify") as traffic:
        time.sleep(WARM_SECONDS)
        traffic.mark("before")
        yield traffic


def settled(settings: Settings) -> None:
    """Until every server is UP everywhere: stock Ansible ends while some are not."""
    with deploy.connect(settings) as (world, zones):
        until(
            lambda: all(why_not_up(host.views) is None for host in look(world, zones).hosts),
            seconds=SETTLE_SECONDS,
            every=1.0,
        )


def limit_of(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """The shortest roll there is, measured: the median over some of them, and its parts.

    Hosts of a batch work at once; a batch takes as long as its slowest host, the roll as long as
    its batches. Of a host only the three parts count, not what lies between them.
    """
    parts: dict[str, list[float]] = {"drain": [], "start": [], "gate": []}
    rolls = []
    snapshot = inventory.load(settings)
    hosts = sorted(host.name for host in snapshot.by_role("app"))
    with (
        clients(settings, options.rate) as traffic,
        deploy.connect(settings) as (world, _),
        Runner(settings, snapshot) as runner,
    ):
        time.sleep(CALM_SECONDS)
        traffic.mark("during")
        for _ in range(options.limits):
            seconds = 0.0
            for batch in batches_of(hosts):
                with ThreadPoolExecutor(len(batch)) as pool:
                    shown = list(pool.map(lambda host: bare(world, runner, host), batch))
                seconds += max(sum(one.values()) for one in shown)
                for one in shown:
                    for name, value in one.items():
                        parts[name].append(value)
            rolls.append(round(seconds, 2))
        seen = traffic.stop()
    p99 = {name: seen["phases"][name]["p99_ms"] for name in ("before", "during")}
    return {
        "batches": [len(batch) for batch in batches_of(hosts)],
        "seconds": round(statistics.median(rolls), 2),
        "each": rolls,
        "parts": {name: spread(values) for name, values in parts.items()},
        "failed": seen["failed"],
        "p99_before_ms": p99["before"],
        "p99_during_ms": p99["during"],
        "p99_ratio": ratio(p99),
    }


def batches_of(hosts: Sequence[str]) -> list[Sequence[str]]:
    """The hosts in batches of the sizes that every way has."""
    sizes, left = batch_sizes(BATCHES, len(hosts)), list(hosts)
    found: list[Sequence[str]] = []
    while left:
        size = next(sizes)
        found.append(left[:size])
        left = left[size:]
    return found


def bare(world: World, runner: Runner, host: str) -> dict[str, float]:
    """Seconds of drain, start and health gate of one host."""
    world.balancers.order(host, "state drain")
    drain = timed(world, host, why_not_idle)
    world.balancers.order(host, "state maint")
    start = float(runner.run(host, START, sudo=True).stdout)
    world.balancers.order(host, "state drain", "health down")
    gate = timed(world, host, why_not_fit)
    world.balancers.order(host, "state ready")
    timed(world, host, why_not_up)
    return {"drain": drain, "start": start, "gate": gate}


def timed(world: World, host: str, why_not: Callable[[Any], str | None]) -> float:
    """Seconds until the load balancers show it."""
    begun = time.monotonic()
    until(lambda: why_not(world.balancers.views(host)) is None, seconds=60, every=0.03)
    return time.monotonic() - begun


def compared(
    ways: Mapping[str, Way],
    limit: Mapping[str, Any],
    options: argparse.Namespace,
    hosts: int,
) -> dict[str, Any]:
    """Everything, with the bars that were missed as sentences."""
    reports = {name: way.report() for name, way in ways.items()}
    told: dict[str, Any] = {
        "hosts": hosts,
        "rate": options.rate,
        "repeats": options.repeats,
        "limit": limit,
        "ways": reports,
    }
    seconds = {
        name: statistics.median(run["seconds"] for run in way.runs) for name, way in ways.items()
    }
    missed = []
    if "ours" in ways:
        own = reports["ours"]
        # Without what Python, SSH and EC2 take before the first host is touched.
        rolled = statistics.median(run["deploy_seconds"] for run in ways["ours"].runs)
        told["ours_to_limit"] = round(rolled / limit["seconds"], 2)
        told["ours_whole_command_to_limit"] = round(seconds["ours"] / limit["seconds"], 2)
        missed += [f"{own['failed']} requests failed"] * bool(own["failed"])
        missed += ["ours / limit"] * (told["ours_to_limit"] > LIMIT_BAR)
        missed += ["p99 during / before"] * ((own["p99_ratio"]["median"] or 0) > P99_BAR)
    for name in {"stock", "tuned"} & set(ways) if "ours" in ways else ():
        told[f"ours_to_{name}"] = round(seconds["ours"] / seconds[name], 2)
    missed += ["ours / stock"] * (told.get("ours_to_stock", 0) > STOCK_BAR)
    return told | {"missed": missed}


def variables(settings: Settings) -> dict[str, str]:
    """The environment of every way: Ansible without Mitogen, as it comes."""
    ours_ = {environment.VARIABLE: settings.env}
    return ansible.variables(settings, os.environ | ours_, mitogen=None, colour=False)


def table(told: Mapping[str, Any]) -> None:
    """For people."""
    limit = told["limit"]
    say(f"{told['hosts']} hosts, {told['rate']} requests/s, {told['repeats']} runs each")
    say("        failed  worst  seconds  worst  p99 before   during    worst")
    for name, one in told["ways"].items():
        say(
            f"{name:7}{one['failed']:7}{one['failed_each']['worst']:7.0f}"
            f"{one['seconds']['median']:9.1f}{one['seconds']['worst']:7.1f}"
            f"{one['p99_before_ms']['median']:12.0f}{one['p99_during_ms']['median']:9.0f}"
            f"{one['p99_during_ms']['worst']:9.0f}"
        )
    parts = ", ".join(f"{name} {part['median']:.2f}" for name, part in limit["parts"].items())
    say(f"limit  {limit['seconds']:.1f} s: batches of {limit['batches']}; a host's {parts}")
    say(f"       p99 {limit['p99_before_ms']} -> {limit['p99_during_ms']} ms for clients meanwhile")
    for key in ("ours_to_limit", "ours_whole_command_to_limit", "ours_to_stock", "ours_to_tuned"):
        if key in told:
            say(f"{key.replace('_', ' ')}: {told[key]}")
    say(f"missed: {', '.join(told['missed']) or 'nothing'}")


def line(run: Mapping[str, Any]) -> str:
    """One run."""
    return (
        f"{run['seconds']:.1f} s, served {run['served']}, failed {run['failed']}, "
        f"p99 {run['p99_before_ms']} -> {run['p99_during_ms']} ms"
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--hosts", type=int, help="scale to so many first, and back after")
    parser.add_argument("--limits", type=int, default=3, help="rolls that measure the limit")
    parser.add_argument("--deploy", help=argparse.SUPPRESS)
    parser.add_argument("--ways", default="ours,stock,tuned,blind")
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

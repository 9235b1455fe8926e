#!/usr/bin/env python3
"""How long a fleet takes to stand and to stay as it is, and what it costs while it does nothing.

    .venv/bin/python benchmarks/fleet.py --yes [--repeats 3]

Takes the lab down and up again, with images cached (fab images.bake first). Repeats: from `lab.up`
until all hosts of fleet.yml answer SSH. Then, once: configure, and repeats of configuring a
converged fleet, and of `fab fleet.status`. Memory is the sum of what every process of the lab has
resident, shared pages counted once (PSS), after the load has settled. One JSON object on stdout;
exits 1 when the worst of a figure missed its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flotilla import config, configure, demo
from flotilla.provision import operate
from flotilla.settings import Settings
from lab import control
from lab.layout import layout
from lab.podman import CGROUP_PARENT

# Seconds, changed tasks, MiB: the most that each may be.
BARS = {
    "up_seconds": 30,
    "configure_again_seconds": 60,
    "configure_again_changed": 0,
    "status_seconds": 3,
    "memory_mib": 6144,
}
SETTLED_LOAD = 0.7
SETTLE_SECONDS = 180.0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--yes", action="store_true", help="agree that the lab is restarted")
    options = parser.parse_args()
    if not options.yes:
        print("This takes the lab and all its hosts down. Next: add --yes", file=sys.stderr)
        return 3
    settings = config.load("lab")
    up = [stand(settings) for _ in range(options.repeats)]
    demo.serve(settings, demo.Phases(said), bake=False)
    noop = []
    for _ in range(options.repeats):
        run = configure.configure(settings, say=said)
        noop.append({"seconds": round(run.seconds, 1), "changed": run.changed})
    looks = [look() for _ in range(options.repeats)]
    told: dict[str, Any] = {
        "up_seconds": spread(up),
        "configure_again_seconds": spread([one["seconds"] for one in noop]),
        "configure_again_changed": max(int(one["changed"]) for one in noop),
        "status_seconds": spread(looks),
        "memory_mib": memory(),
    }
    missed = [name for name, bar in BARS.items() if worst(told[name]) > bar]
    print(json.dumps({"hosts": 12, **told, "missed": missed}))
    return 1 if missed else 0


def stand(settings: Settings) -> float:
    """Seconds from `lab.up` until every host of the fleet answers SSH."""
    control.down(layout())
    began = time.monotonic()
    control.up(layout(), lambda _: None)
    operate.provision(settings, confirmed=lambda _: None, said=said)
    operate.await_hosts(settings, said=said)
    return round(time.monotonic() - began, 1)


def look() -> float:
    """Seconds that `fab fleet.status` takes, from its start to its end."""
    began = time.monotonic()
    command = [str(Path(sys.executable).with_name("fab")), "fleet.status", "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - began, 2)


def memory() -> int:
    """MiB resident in all processes of the lab, once the machine has come to rest."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while os.getloadavg()[0] > SETTLED_LOAD and time.monotonic() < deadline:
        time.sleep(1)
    daemon = control.ask("status")["pid"]
    return (
        sum(filter(None, (pss(int(path.name), daemon) for path in Path("/proc").glob("[0-9]*"))))
        // 1024
    )


def pss(pid: int, daemon: int) -> int:
    """KiB of one process if it is the lab's, else 0."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        command = Path(f"/proc/{pid}/comm").read_text().strip()
        if f":{CGROUP_PARENT}/" not in groups and command != "conmon" and pid != daemon:
            return 0
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def spread(values: list[float]) -> dict[str, float]:
    """Median and worst of repeats."""
    return {"median": statistics.median(values), "worst": max(values)}


def worst(figure: dict[str, float] | float) -> float:
    """Of a spread, or the figure itself."""
    return figure["worst"] if isinstance(figure, dict) else figure


def said(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

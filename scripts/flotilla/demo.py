"""The main job from end to end on whatever environment is given: bake, provision, configure, serve,
deploy and switch over under traffic. Every phase does nothing where nothing is to be done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla import audit, configure, deploy, images, release
from flotilla.aws import edge
from flotilla.deploy import Outcome, Step
from flotilla.deploy.survey import look
from flotilla.errors import FlotillaError
from flotilla.files import replace
from flotilla.lock import take_from_dead
from flotilla.mysql import operate as mysql
from flotilla.provision import operate as provision
from flotilla.rules.deploy import Options
from flotilla.rules.release import default_version
from flotilla.settings import Settings
from flotilla.traffic import Background

Say = Callable[[str], None]

RATE = 50  # requests a second from first to last; a pause of a second would touch 50 of them
# Traffic before anything moves, so that there is something to compare with.
CALM_SECONDS = 3.0
WRITERS = 4


@dataclass(slots=True)
class Phases:
    """Names and times the parts of the demo; ``seconds`` is by phase, in order."""

    say: Say
    clock: Callable[[], float] = time.time
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One phase."""
        begun = self.clock()
        self.say(f"== {name}")
        yield
        self.seconds[name] = round(self.clock() - begun, 1)
        self.say(f"== {name} ... ok {self.seconds[name]:.1f} s")


def serve(settings: Settings, phases: Phases, *, bake: bool = True) -> list[str]:
    """Bring a fleet up until it serves the application; the names of its hosts.

    Raises what the part that failed raises; what was done until then stays and is not done again.
    """
    say = phases.say
    if bake:
        with phases("images"):
            _bake(settings, say)
    with phases("provision"):
        if dead := take_from_dead(settings, "deploy"):
            say(f"took the lock from {dead}, which was killed")
        provision.provision(settings, confirmed=lambda _: None, said=say)
        hosts = [host.name for host in provision.await_hosts(settings, said=say).hosts]
    with phases("configure"):
        configure.configure(settings, say=say)
    serving = _serving(settings)
    if not all(serving):
        # A run that was killed may have left a host out of rotation: it is taken along.
        options = Options(adopt=True, outage=not any(serving))
        with phases("first release"):
            _deploy(settings, _release(settings), say, options).raise_failure()
    return hosts


def perform(
    settings: Settings, phases: Phases, *, sleep: Callable[[float], None]
) -> dict[str, Any]:
    """A rolling deploy and a planned switchover while clients are served; what the clients saw.

    {url, requests, deploy, switchover} as in var/demo.json.
    """
    url = edge.url(settings)
    with phases("release"):
        version = _release(settings)
    with Background("--url", url, "--rate", str(RATE), "--verify") as traffic:
        traffic.mark("before")
        sleep(CALM_SECONDS)
        with phases("deploy"):
            traffic.mark("deploy")
            rolled = _deploy(settings, version, phases.say, Options())
        with phases("switchover"):
            traffic.mark("switchover")
            moved = mysql.switchover(
                settings,
                writers=WRITERS,
                confirmed=phases.say,
                said=phases.say,
            )
        traffic.mark("after")
        sleep(CALM_SECONDS)
        requests = traffic.stop()
    rolled.raise_failure()
    return {
        "url": url,
        "requests": requests,
        "deploy": {"version": version}
        | {key: getattr(rolled, key) for key in ("served", "failed", "seconds")},
        "switchover": {
            key: moved[key] for key in ("old", "new", "term", "write_gap_seconds", "acked", "lost")
        },
    }


def record(path: Path, told: dict[str, Any]) -> None:
    """Keep the figures at ``path`` as one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(told, indent=2) + "\n")


def verdict(told: dict[str, Any]) -> FlotillaError | None:
    """What clients were promised and did not get; None when nothing failed and nothing was lost."""
    faults = []
    if told["requests"]["failed"]:
        reasons = ", ".join(f"{n} x {why}" for why, n in told["requests"]["failures"].items())
        faults.append(f"{told['requests']['failed']} requests failed ({reasons})")
    if told["requests"].get("lost"):
        faults.append(f"{told['requests']['lost']} acknowledged entries are not there")
    if told["deploy"]["failed"]:
        faults.append(f"the load balancers counted {told['deploy']['failed']} failed requests")
    if told["switchover"]["lost"]:
        faults.append(f"{told['switchover']['lost']} acknowledged writes were lost")
    if not faults:
        return None
    return FlotillaError("; ".join(faults), next="fab fleet.status")


def _bake(settings: Settings, say: Say) -> None:
    made = images.bake(settings, images.plan(settings, images.chosen(None)), say=say)
    fresh = [one.as_dict() for one in made if one.action != "reuse"]
    if fresh:
        audit.record(settings, "fab images.bake", "done", images=fresh)


def _serving(settings: Settings) -> list[bool]:
    """Of every application host, whether it runs a release and clients are sent to it."""
    with deploy.connect(settings) as (world, zones):
        return [bool(host.version) and host.is_serving for host in look(world, zones).hosts]


def _release(settings: Settings) -> str:
    return release.publish(settings, default_version(datetime.now(UTC))).release.version


def _deploy(settings: Settings, version: str, say: Say, options: Options) -> Outcome:
    def told(step: Step) -> None:
        end = f"FAILED: {step.error}" if step.error else "ok"
        say(f"{step.host} {step.name} ... {end} {step.seconds:.1f} s")

    return deploy.deploy(
        settings,
        version,
        options,
        confirmed=lambda plan: say(deploy.described(plan)),
        said=told,
    )

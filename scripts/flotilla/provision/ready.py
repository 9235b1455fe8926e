"""Wait until every host of the fleet runs and answers SSH through the bastion."""

from __future__ import annotations

import time
from collections.abc import Callable

from flotilla import inventory
from flotilla.errors import Unreachable
from flotilla.hosts.ssh import Runner, prepare
from flotilla.provision import hosts
from flotilla.provision.world import World
from flotilla.snapshot import Snapshot
from flotilla.wait import DeadlineError, until

# On AWS a host boots in 30 to 60 s and its console shows the host keys up to two minutes later.
BOOT_SECONDS = 300


def await_ssh(
    world: World,
    *,
    seconds: float = BOOT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Snapshot:
    """The fleet's hosts once each has answered; also renews the snapshot and the SSH files.

    Raises Unreachable naming every host that did not answer within ``seconds``.
    """
    settings, start = world.settings, clock()
    hosts.await_running(world)
    snapshot = inventory.load(settings, refresh=True)
    silent = {host.name: "its host key is not known" for host in prepare(settings, snapshot)}

    def answered() -> bool:
        targets = [host for host in snapshot.hosts if host.is_active]
        with Runner(settings, snapshot) as runner:
            errors = runner.run_on(targets, "true").errors
        silent.clear()
        silent.update({name: error.what for name, error in errors.items()})
        return not silent

    try:
        until(answered, seconds=seconds - (clock() - start), every=1.0, clock=clock, sleep=sleep)
    except DeadlineError as error:
        raise Unreachable(
            f"{len(silent)} hosts do not answer SSH after {seconds:g} s: "
            + "; ".join(silent.values()),
            why="they run, so what they printed on their console tells more",
            next="fab fleet.provision",
        ) from error
    return snapshot

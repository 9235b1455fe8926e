"""Every run-book is rehearsed on the standing fleet: break, look, mend, and clients are served.

The commands are those of the page, run by a shell as they stand; a changing one gets --yes.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from guests import control, needs_lab
from rolling import Rolling
from runbooks import REPO, Command, commands, pages

from fabfile import namespace
from flotilla import inventory
from flotilla.aws import edge
from flotilla.aws.session import client
from flotilla.settings import Settings

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.thorough]

SECONDS = 120
# A host that was frozen needs as long to be in rotation everywhere again.
WHOLE_SECONDS = 60
LOCK_SECONDS = 65
# Replacing a host configures a new one: a test of its own.
SLOW = "replace-an-app-host"


@dataclass
class Rehearsal:
    """One fleet, and what the pages' variables stand for on it."""

    settings: Settings
    variables: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    board: dict[str, Any] = field(default_factory=dict)
    struck: set[str] = field(default_factory=set)

    def run(self, command: Command) -> subprocess.CompletedProcess[str]:
        """Run one line; fails unless it ends with an exit code that the page names."""
        line = command.line
        if command.fab and command.fab[0] in {"lab.fault", "lab.heal"}:
            line = self._by_id(command)
        elif command.kind == "changes" and takes_yes(command):
            line = f"{line} --yes"
        done = self.shell(line)
        allowed = command.exits if command.kind != "plans" else {0, 3}
        # bash becomes its last command: a death by signal is put as a shell at a prompt says it.
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        assert code in allowed, (
            f"{line}: exit {code}, the page says {sorted(allowed)}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", line],
            cwd=REPO,
            env=os.environ | self.variables | {"PATH": path, "FLOTILLA_ENV": "lab"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def json(self, task: str) -> dict[str, Any]:
        """What a task prints with --json."""
        done = self.shell(f"fab {task} --json")
        assert done.stdout, f"fab {task}: exit {done.returncode}, {done.stderr}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _by_id(self, command: Command) -> str:
        """Hosts by id: the lab may run others of the same name, as Molecule's are."""
        words = [self.variables.get(w.removeprefix("$"), w) for w in shlex.split(command.line)]
        self.struck |= {word for word in words if word in self.ids or word == "api"}
        return shlex.join(self.ids.get(word, word) for word in words)

    def heal(self) -> None:
        """Undo what was broken here and is still; somebody else's faults stay."""
        for name in sorted(self.struck):
            with suppress(AssertionError):  # it was replaced, and is not known any more
                control("heal", {"target": self.ids.get(name, name)})
        self.struck.clear()


def takes_yes(command: Command) -> bool:
    """Whether the task asks before it acts."""
    task = (command.fab or [""])[0]
    known = {context.name: context for context in namespace.to_contexts()}
    return task in known and "--yes" in known[task].flags


def until(condition: Callable[[], bool], *, seconds: float, what: Callable[[], object]) -> None:
    """Wait for a condition; fails with ``what`` after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what()}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def fleet(rolling: Rolling) -> Rehearsal:
    """The fleet, with a release that runs and another one that ran before."""
    rolling.make_whole()
    rolling.deploy()
    rolling.is_whole(rolling.other)
    return Rehearsal(rolling.settings)


@pytest.fixture
def rehearsal(fleet: Rehearsal, rolling: Rolling) -> Iterator[Rehearsal]:
    """The fleet, whole before and after a page; what a page leaves is mended for the next one."""
    rolling.make_whole()
    fleet.board = await_whole(fleet)
    fleet.variables = variables(rolling, fleet.board)
    fleet.ids = {host["name"]: host["instance_id"] for host in fleet.board["hosts"]}
    yield fleet
    fleet.heal()
    try:
        fleet.board = await_whole(fleet)
        await_served(fleet.settings)
    except AssertionError:
        fleet.shell("fab mysql.ensure --yes")
        raise


def variables(rolling: Rolling, board: dict[str, Any]) -> dict[str, str]:
    """What docs/runbooks/README.md says where to read."""
    mysql, redis = board["mysql"], board["redis"]
    primaries = {"MYSQL": mysql["primary"], "REDIS": redis["primary"]}
    master = next(lb["name"] for lb in board["lb"] if lb["vrrp"] == "MASTER")
    return {
        # Before a page is followed: whoever has the role then is who had it before.
        **{f"{tier}_PRIMARY": name for tier, name in primaries.items()},
        **{f"{tier}_OLD_PRIMARY": name for tier, name in primaries.items()},
        "LB_MASTER": master,
        "LB_OLD_MASTER": master,
        "HOST": board["app"][-1]["name"],
        "MYSQL_REPLICA": next(m["name"] for m in mysql["members"] if m["name"] != mysql["primary"]),
        "REDIS_REPLICA": next(m["name"] for m in redis["members"] if m["name"] != redis["primary"]),
        "PERSON": "alice",
        # Anybody's will do: what is rehearsed is the certificate.
        "PUBLIC_KEY": f"{rolling.settings.path(rolling.settings.ssh.key_file)}.pub",
        "VERSION": rolling.version,
        "PREVIOUS": rolling.other,
    }


def await_whole(made: Rehearsal) -> dict[str, Any]:
    """Wait until the board finds nothing wrong; the board."""
    found: dict[str, Any] = {}

    def whole() -> bool:
        found.update(made.json("fleet.status"))
        # Under a lock, a drained host is a change under way: of no use to whoever waits for an end.
        return bool(found.get("ok")) and not found["lock"]

    until(whole, seconds=WHOLE_SECONDS, what=lambda: found.get("findings", found))
    return found


def await_served(settings: Settings) -> None:
    """A client of the Elastic IP gets the page, and a stored entry."""
    with urllib.request.urlopen(f"{edge.url(settings)}/readyz", timeout=10) as answer:
        assert answer.status == 200


def rehearse(made: Rehearsal, text: str) -> None:
    """Break what the page breaks, then do what it says, from top to bottom."""
    steps = list(commands(text))
    for step in (one for one in steps if one.kind == "breaks"):
        made.run(step)
    if any(step.kind == "breaks" for step in steps):
        await_symptom(made)
    rest = [step for step in steps if step.kind != "breaks"]
    for is_look, together in groupby(rest, key=lambda step: step.kind == "reads"):
        # Looks do not wait for each other, as in the windows of somebody in a hurry.
        with ThreadPoolExecutor(max_workers=4 if is_look else 1) as pool:
            list(pool.map(lambda step: follow(made, step), together))


def follow(made: Rehearsal, step: Command) -> None:
    """Do one step, when mysql.status says that it is the next one where it is mysql.ensure."""
    if step.fab and step.fab[0] == "mysql.ensure":
        # A server that was killed is being started again.
        until(
            lambda: made.json("mysql.status").get("next") == "fab mysql.ensure",
            seconds=30,
            what=lambda: made.json("mysql.status"),
        )
    if step.fab and step.fab[0] == "mysql.rejoin":
        # A host that is being fenced is stopped in a moment, and cannot be started before.
        until(
            lambda: made.shell(f"{step.line} --yes").returncode == 0,
            seconds=60,
            what=lambda: made.json("mysql.status"),
        )
        return
    made.run(step)


def await_symptom(made: Rehearsal) -> None:
    """Wait until the board shows what is wrong: a page nobody is sent to would be of no use."""

    def seen() -> bool:
        board = made.json("fleet.status")
        return "error" in board or not board["ok"] or bool(board["lock"])

    # What a killed run left is a note, not a fault, until its lock has freed itself.
    until(seen, seconds=15 + LOCK_SECONDS, what=lambda: "fab fleet.status finds nothing wrong")


QUICK = [path for path in pages() if path.stem != SLOW]


@pytest.mark.parametrize("page", QUICK, ids=[path.stem for path in QUICK])
def test_what_a_page_says_works_while_clients_are_served(rehearsal: Rehearsal, page: Path) -> None:
    rehearse(rehearsal, page.read_text())


def test_a_lost_application_host_is_replaced_as_its_page_says(rehearsal: Rehearsal) -> None:
    page = (REPO / "docs" / "runbooks" / f"{SLOW}.md").read_text()
    lost = rehearsal.ids[rehearsal.variables["HOST"]]
    steps = list(commands(page))
    for step in (one for one in steps if one.kind == "breaks"):
        rehearsal.run(step)
    until(
        lambda: is_replaced(rehearsal.settings, lost),
        seconds=60,
        what=lambda: "Auto Scaling launched no other host",
    )
    for step in (one for one in steps if one.kind != "breaks"):
        rehearsal.run(step)
    await_whole(rehearsal)
    present = {host.name: host for host in inventory.load(rehearsal.settings, refresh=True).hosts}
    assert present[rehearsal.variables["HOST"]].instance_id != lost


def is_replaced(settings: Settings, lost: str) -> bool:
    """Whether the group has its number of hosts, without that one."""
    groups = client(settings, "autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[settings.name_of("app")]
    )["AutoScalingGroups"]
    well = [i["InstanceId"] for i in groups[0]["Instances"] if i["LifecycleState"] == "InService"]
    return lost not in well and len(well) == settings.tiers.app.count

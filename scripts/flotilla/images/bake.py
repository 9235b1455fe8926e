"""Bake images: base first, then the others from it, each one checked on a host of its own.

Two bakes at a time keep two cores busy, and the check of a finished image runs beside the next
bake. Everything that exists only for the bake hangs on one BuildId and goes at the end, however the
end comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flotilla import ansible, files
from flotilla.aws import images as edge
from flotilla.aws import workbench
from flotilla.errors import HostFailed
from flotilla.hosts import keys
from flotilla.images import content
from flotilla.images.check import check
from flotilla.images.packer import Packer, StoppedError, artifact
from flotilla.images.templates import initialise
from flotilla.rules import images as rules
from flotilla.settings import Settings

# After this AWS hides an image from those who look for one; whoever has its id can still launch it.
DEPRECATE_AFTER = timedelta(days=180)
BAKES_AT_ONCE = 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one image; seconds are 0 for what was not needed."""

    role: str
    action: rules.Action
    image_id: str
    name: str
    bake_seconds: float
    test_seconds: float
    found: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "role": self.role,
            "action": self.action,
            "image_id": self.image_id,
            "name": self.name,
            "bake_seconds": round(self.bake_seconds, 1),
            "test_seconds": round(self.test_seconds, 1),
            "cloudwatch_agent": self.found.get("cloudwatch_agent"),
            "packages": self.found.get("packages"),
            "sbom_not_kept": self.found.get("sbom_not_kept"),
        }


@dataclass(frozen=True, slots=True)
class Request:
    """What ``plan`` found, for ``bake`` to carry out."""

    steps: tuple[rules.Step, ...]
    hashes: Mapping[str, str]
    source: Mapping[str, Any]


def plan(settings: Settings, wanted: Collection[str], *, force: bool = False) -> Request:
    """Compare what exists with what is wanted. Raises Refused when there is no source image."""
    source = edge.source(settings)
    hashes = content.hashes(settings, source["ImageId"])
    steps = rules.plan(wanted, edge.ours(settings), hashes, force=force)
    return Request(tuple(steps), hashes, source)


def bake(
    settings: Settings, request: Request, *, say: Say, now: datetime | None = None
) -> list[Done]:
    """Carry out a plan; the images in the order of its steps.

    ``say`` gets one line for each thing that happened, from several threads. Raises what the first
    image that failed raised, after everything temporary is gone.
    """
    if all(step.action == "reuse" for step in request.steps):
        return [_reused(step) for step in request.steps]
    started = now or datetime.now(UTC)
    for killed in sweep(settings, started):
        say(f"cleared up after bake {killed}, which never ended")
    build_id = f"{started:%Y%m%d%H%M%S}-{os.urandom(3).hex()}"
    tags = {"Fleet": settings.name, "Env": settings.env, "ManagedBy": "flotilla"}
    with workbench.open_workbench(
        settings, build_id, public_key=keys.public(settings), tags=tags
    ) as bench:
        return _Bakery(settings, request, bench, say, started).work()


def sweep(settings: Settings, now: datetime) -> list[str]:
    """Clear up after bakes that were killed: those too old to be still running; their build ids."""
    # Base, then the others by twos, each within its time limit.
    rounds = 1 + -(-len(rules.ROLES) // BAKES_AT_ONCE)
    longest = timedelta(minutes=rounds * settings.images.packer.timeout_minutes)
    dead = [
        build_id
        for build_id in sorted(workbench.left_behind(settings))
        if now - _begun(build_id) > longest
    ]
    for build_id in dead:
        workbench.clear(settings, build_id)
    return dead


def _begun(build_id: str) -> datetime:
    return datetime.strptime(build_id.split("-", maxsplit=1)[0], "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def _reused(step: rules.Step) -> Done:
    assert step.image is not None  # noqa: S101  rules.plan: only a bake has none
    return Done(step.role, "reuse", step.image.image_id, step.image.name, 0, 0)


class _Bakery:
    """One bake of several images."""

    def __init__(
        self,
        settings: Settings,
        request: Request,
        bench: workbench.Workbench,
        say: Say,
        started: datetime,
    ) -> None:
        self._settings = settings
        self._request = request
        self._bench = bench
        self._say = say
        self._started = started
        self._stop = threading.Event()
        self._folder = settings.scratch / "images" / bench.build_id
        self._git = _git(settings.root)
        self._lock = threading.Lock()

    def work(self) -> list[Done]:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._prepare()
        steps = list(self._request.steps)
        with ThreadPoolExecutor(BAKES_AT_ONCE) as bakers, ThreadPoolExecutor(4) as testers:
            try:
                return self._all(steps, bakers, testers)
            except BaseException:
                # The pools wait for their threads on the way out: tell those to come to an end.
                self._stop.set()
                raise

    def _all(
        self, steps: list[rules.Step], bakers: ThreadPoolExecutor, testers: ThreadPoolExecutor
    ) -> list[Done]:
        tests: dict[str, Future[Done]] = {}
        base: Future[Done] | None = None
        below = self._request.source["ImageId"]
        if steps[0].role == rules.BASE:
            made, seconds = self._obtain(steps[0], below)
            # The others are baked while base is checked; none of them passes unless base does.
            base = testers.submit(self._test, steps[0], made, seconds, None)
            tests[rules.BASE] = base
            below = made.image_id
        bakes = [
            bakers.submit(self._one, step, below, base, testers, tests)
            for step in steps
            if step.role != rules.BASE
        ]
        self._await(bakes)
        self._await(list(tests.values()))
        return [tests[step.role].result() for step in steps]

    def _await(self, futures: list[Future[Any]]) -> None:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [error for one in done if (error := one.exception())]
        if failures:
            self._stop.set()
            # Of several, the one that was not merely stopped because of another.
            raise next((e for e in failures if not isinstance(e, StoppedError)), failures[0])

    def _one(
        self,
        step: rules.Step,
        below: str,
        base: Future[Done] | None,
        testers: ThreadPoolExecutor,
        tests: dict[str, Future[Done]],
    ) -> None:
        made, seconds = self._obtain(step, below)
        with self._lock:
            tests[step.role] = testers.submit(self._test, step, made, seconds, base)

    def _obtain(self, step: rules.Step, below: str) -> tuple[rules.Image, float]:
        if step.image is not None:
            return step.image, 0.0
        start = time.monotonic()
        image = self._bake(step.role, below)
        seconds = time.monotonic() - start
        self._say(f"baked {step.role}: {image.image_id} in {seconds:.1f} s")
        return image, seconds

    def _test(
        self, step: rules.Step, image: rules.Image, seconds: float, base: Future[Done] | None
    ) -> Done:
        if step.action == "reuse":
            return _reused(step)
        start = time.monotonic()
        tags = {"Name": f"test-{image.name}", "Fleet": self._settings.name, "Purpose": "test"}
        found = check(self._settings, self._bench, image, tags=tags)
        if base is not None:
            base.result()
        edge.tag(self._settings, image, Status="tested")
        tested = time.monotonic() - start
        self._say(f"tested {step.role}: {image.image_id} in {tested:.1f} s")
        if why := found["sbom_not_kept"]:
            self._say(f"no bill of materials of {step.role} was kept: {why}")
        return Done(step.role, step.action, image.image_id, image.name, seconds, tested, found)

    def _prepare(self) -> None:
        initialise(self._packer(self._folder / "packer.log"))

    def _bake(self, role: str, below: str) -> rules.Image:
        log = self._folder / f"{role}.log"
        manifest = self._folder / f"{role}.manifest.json"
        variables = files.replace(
            self._folder / f"{role}.pkrvars.json",
            json.dumps(self._variables(role, below, manifest), indent=1),
        )
        code, out, _ = self._packer(log, role).build(
            f"packer/{role}", color="false", var_file=[str(variables)]
        )
        if code:
            raise HostFailed(
                f"packer could not bake {role} (exit {code}): {_tail(out)}",
                untouched="Images that existed are as they were",
                next=f"less {log}",
            )
        image_id = artifact(manifest, self._settings.region)
        deprecate_at = self._started + DEPRECATE_AFTER
        edge.finish(self._settings, image_id, deprecate_at=deprecate_at)
        found = next(one for one in edge.ours(self._settings) if one.image_id == image_id)
        edge.tag(self._settings, found, Status="baked")
        return replace(found, status="baked")

    def _packer(self, log: Path, role: str = "") -> Packer:
        mitogen = ansible.mitogen_plugins()
        return Packer(
            self._settings.root,
            ansible.variables(self._settings, os.environ, mitogen=mitogen, colour=False),
            say=_Log(log, self._say, role),
            seconds=self._settings.images.packer.timeout_minutes * 60,
            stop=self._stop,
        )

    def _variables(self, role: str, below: str, manifest: Path) -> dict[str, Any]:
        """For the template: values may be secret or long, so they go by file, not by argument."""
        settings, bench = self._settings, self._bench
        name = f"{settings.name}-{role}-{self._started:%Y%m%d%H%M%S}"
        content_hash = self._request.hashes[role]
        tags = {
            "Name": name,
            "Fleet": settings.name,
            "Role": role,
            "ManagedBy": "flotilla",
            "Status": "baked",
            "ContentHash": content_hash,
            "SourceImage": below,
            "BuildId": bench.build_id,
            **self._git,
        }
        extra = {
            "ansible_python_interpreter": "/usr/bin/python3",
            "fleet": content.fleet(settings),
            "base_image_name": role,
            "base_image_build_id": bench.build_id,
            "base_image_content_hash": content_hash,
            "base_image_git_commit": self._git["GitCommit"],
        }
        extra_file = files.replace(self._folder / f"{role}.vars.json", json.dumps(extra, indent=1))
        return {
            "ami_name": name,
            "source_ami": below,
            "region": settings.region,
            "ec2_endpoint": settings.aws.endpoint_url or "",
            "instance_type": settings.images.packer.type,
            "root_device": self._request.source["RootDeviceName"],
            "subnet_id": bench.subnet_id,
            "security_group_id": bench.group_id,
            "ssh_interface": settings.images.packer.ssh_interface,
            "ssh_username": settings.ssh.user,
            "ssh_keypair_name": bench.key_name,
            "ssh_private_key_file": str(keys.ensure(settings)),
            "ansible_arguments": ["--extra-vars", f"@{extra_file}"],
            "tags": tags,
            "run_tags": {
                "Name": f"bake-{name}",
                "Fleet": settings.name,
                "Purpose": "bake",
                workbench.TAG: bench.build_id,
            },
            "manifest": str(manifest),
        }


class _Log:
    """Packer's output into a file as it comes; what it is doing, to the operator."""

    def __init__(self, path: Path, say: Say, role: str) -> None:
        self._path = path
        self._say = say
        self._role = role

    def __call__(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")
        if self._role and line.startswith("==> ") and ": " in line:
            self._say(f"{self._role}: {line.split(': ', 1)[1]}")


def _git(root: Path) -> dict[str, str]:
    """Commit, and whether what goes into images differs from it; "unknown" outside a checkout."""

    def git(*argv: str) -> str | None:
        done = subprocess.run(["git", *argv], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--", "roles", "playbooks", "packer", "inventory")
    return {
        "GitCommit": git("rev-parse", "HEAD") or "unknown",
        "GitDirty": "false" if changed == "" else "true",
    }


def _tail(out: bytes, lines: int = 3) -> str:
    """The lines of Packer's output that say what went wrong: Ansible's, where it got that far."""
    text = [_said(line) for line in out.decode(errors="replace").splitlines()]
    told = [line for line in text if line.startswith(("[ERROR]: ", "msg: ", "stderr: "))]
    errors = [line for line in text if "rror" in line]
    return " | ".join((told or errors or [line for line in text if line])[-lines:])


def _said(line: str) -> str:
    """A line without what Packer puts before it."""
    return line.strip().removeprefix("==> ").partition("amazon-ebs.image:")[2].strip() or (
        line.strip()
    )

"""A second lab inside namespaces of its own, for tests that would take everybody's hosts away.

It has its own network, mounts, processes, control groups and lock, so it neither sees nor disturbs
a lab that runs on the machine. Only the base image is shared, by copying it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guests import until

from lab.amis import reference
from lab.layout import layout
from lab.podman import Podman

REPO = Path(__file__).resolve().parents[2]

_HOLD = """
set -e
mount --make-rprivate /
mkdir -p /run/flotilla-lab
mount -t tmpfs none /run/flotilla-lab
mount -t tmpfs none {repo}/var
mkdir -p /run/netns
mount -t tmpfs none /run/netns
ip link set lo up
echo ready
while :; do sleep 60 & wait; done
"""


@dataclass(frozen=True)
class Nested:
    """A machine with nothing on it but this checkout."""

    holder: int  # PID 1 in there, as seen from here
    cache: Path

    def start(self, *argv: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command in there."""
        enter = ["nsenter", "-t", str(self.holder), "-m", "-n", "-C", "-p"]
        return subprocess.Popen(
            [*enter, "--", "sh", "-c", f'cd {REPO} && exec "$@"', "sh", *argv],
            env={**os.environ, "FLOTILLA_CACHE": str(self.cache), "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def run(self, *argv: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command in there; its output and exit code."""
        process = self.start(*argv)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def fab(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a task in there."""
        return self.run(str(Path(sys.executable).with_name("fab")), *argv)

    def says(self, *argv: str) -> str:
        """Output of a command that must succeed."""
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def python(self, code: str) -> Any:
        """What a Python program in there prints as JSON."""
        return json.loads(self.says(sys.executable, "-c", code))

    def traces(self) -> list[str]:
        """What an untouched machine has not: links, routes, tables, processes."""
        links = [link["ifname"] for link in json.loads(self.says("ip", "-j", "link")) or []]
        lines = [f"link {name}" for name in links if name.startswith("fl")]
        lines += self.says("ip", "route").splitlines()
        lines += self.says("nft", "list", "tables").splitlines()
        lines += self.says("ip", "netns").splitlines()
        processes = self.says("ps", "-eo", "pid=,args=").splitlines()
        named = ("conmon", "/sbin/init", "lab.server", "podman")
        lines += [line for line in processes if any(name in line for name in named)]
        return lines


@contextlib.contextmanager
def nested() -> Iterator[Nested]:
    """A machine of its own, gone afterwards with all that runs on it."""
    cache = Path(tempfile.mkdtemp(prefix="nested-lab-"))
    (REPO / "var").mkdir(exist_ok=True)
    unshare = ["unshare", "--mount", "--net", "--cgroup", "--pid", "--fork", "--kill-child"]
    holder = subprocess.Popen(
        [*unshare, "--mount-proc", "sh", "-c", _HOLD.format(repo=REPO)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_own_group,  # noqa: PLW1509  one thread, before any other is started
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        machine = Nested(int(children[0]), cache)
        _copy_base_image(machine)
        yield machine
    finally:
        holder.kill()
        holder.wait()
        until(lambda: _removed(_group(holder.pid)), 20, "its last process is gone")
        subprocess.run(["rm", "-rf", str(cache)], check=False)


def _copy_base_image(machine: Nested) -> None:
    """Give the new cache the base image that this machine has; without one the lab builds it."""
    ours, amis = layout(), machine.cache / "amis"
    kept = [p for p in ours.amis.glob("ami-*.json") if "debian-13" in p.read_text()]
    if not kept:
        return
    newest = max(kept, key=lambda path: path.stat().st_mtime)
    amis.mkdir()
    shutil.copy(newest, amis)
    tarball = str(machine.cache / "base.tar")
    alone = ["unshare", "--mount", "--propagation", "private", "--"]
    saved = Podman.of(ours).argv("save", "-q", "-o", tarball, reference(newest.stem))
    subprocess.run([*alone, *saved], check=True, capture_output=True)
    theirs = Podman(machine.cache / "containers", ours.runroot)
    machine.says(*alone, *theirs.argv("load", "-q", "-i", tarball))
    Path(tarball).unlink()


def _group(pid: int) -> Path:
    unified = Path("/sys/fs/cgroup/unified")
    return (unified if unified.exists() else Path("/sys/fs/cgroup")) / f"nested-lab-{pid}"


def _removed(group: Path) -> bool:
    """Remove a control group and those below it, as far as they are empty; True when all are."""
    for directory in sorted([group, *group.rglob("*/")], reverse=True):
        with contextlib.suppress(OSError):
            directory.rmdir()
    return not group.exists()


def _own_group() -> None:
    """Move this process to a control group of its own, the root of the one it will see."""
    group = _group(os.getpid())
    group.mkdir()
    (group / "cgroup.procs").write_text(str(os.getpid()))

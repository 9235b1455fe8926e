"""podman as the lab uses it: its own storage, runc, no networking of podman's."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.layout import PREFIX, Layout
from lab.run import run, tried

# podman lowers its own hard limit to the kernel's default pid_max first; more than that is refused
# to the container.
_PROCESSES = 32768
CGROUP_PARENT = f"/{PREFIX}"

# SYS_ADMIN: without it systemd starts units but silently leaves ProtectSystem= and its like out, so
# a unit that such a setting breaks would first break on AWS. SYS_BOOT: a host may reboot itself.
_CAPABILITIES = "NET_ADMIN,NET_RAW,SYS_ADMIN,SYS_NICE,IPC_LOCK,SYS_PTRACE,SYS_BOOT"
_AS_MACHINE = (
    *("--systemd=always", "--tty", "--cap-add", _CAPABILITIES, "--image-volume=ignore"),
    *("--cgroup-parent", CGROUP_PARENT, "--pids-limit=0", "--restart=no", "--stop-timeout=30"),
    *("--sysctl", "net.ipv4.ping_group_range=0 2147483647", "--no-hosts", "--dns=none"),
    *("--log-driver", "k8s-file", "--log-opt", "max-size=4mb", "--pull=never"),
)


def _limit(kind: int, wanted: int) -> str:
    """A `soft:hard` pair that this process may set: never above its own hard limit."""
    hard = resource.getrlimit(kind)[1]
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    return f"{value}:{value}"


@dataclass(frozen=True, slots=True)
class Podman:
    """The one way in which the lab calls podman."""

    storage: Path
    runroot: Path

    @classmethod
    def of(cls, where: Layout) -> Podman:
        """podman with the storage of this layout."""
        return cls(where.storage, where.runroot)

    def argv(self, *arguments: str) -> list[str]:
        """A podman command line on the lab's storage.

        crun 1.8 wants to raise RLIMIT_MEMLOCK and fails where CAP_SYS_RESOURCE is missing: hence
        runc.
        A directory that comes from the image can be renamed only with redirect_dir, as on any other
        disk: MySQL's CLONE renames some of its data directory's, and died at that.
        """
        return [
            *(
                "podman",
                "--root",
                str(self.storage),
                "--runroot",
                str(self.runroot),
                "--storage-driver",
                "overlay",
                *("--storage-opt", "overlay.mountopt=redirect_dir=on"),
            ),
            *("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"),
            *arguments,
        ]

    def import_image(self, tarball: Path, reference: str) -> None:
        """Make an image of a root file system."""
        run(
            self.argv(
                "import", "--quiet", "--change", 'CMD ["/sbin/init"]', str(tarball), reference
            ),
            timeout=300,
        )

    def has_image(self, reference: str) -> bool:
        """Whether the image's disk is in the storage."""
        return tried(self.argv("image", "exists", reference))

    def image_references(self) -> set[str]:
        """Names of all images in the storage."""
        listed = json.loads(run(self.argv("images", "--format", "json")) or "[]")
        return {name for image in listed for name in image.get("Names") or []}

    def remove_image(self, reference: str) -> bool:
        """Delete an image's disk; False while a container or another image still stands on it."""
        return tried(self.argv("rmi", reference))

    def create(
        self, *, name: str, image: str, netns: str, hostname: str, console: Path, pidfile: Path
    ) -> Path:
        """Create a stopped host and return the directory whose content its disk shows on top of the
        image's.
        """
        files = f"nofile={_limit(resource.RLIMIT_NOFILE, 65536)}"
        processes = f"nproc={_limit(resource.RLIMIT_NPROC, _PROCESSES)}"
        own = ("--name", name, "--hostname", hostname, "--network", f"ns:/run/netns/{netns}")
        logs = ("--log-opt", f"path={console}", "--pidfile", str(pidfile))
        limits = ("--ulimit", files, "--ulimit", processes)
        run(self.argv("create", *own, *_AS_MACHINE, *limits, *logs, image, "/sbin/init"))
        layer = "--format={{.GraphDriver.Data.UpperDir}}"
        upper = run(self.argv("inspect", "--type=container", layer, name))
        return Path(upper.strip())

    def start(self, name: str) -> None:
        """Boot a created or stopped host."""
        run(self.argv("start", name))

    def exit_code(self, name: str) -> int:
        """How the host's PID 1 last ended."""
        return int(
            run(
                self.argv("inspect", "--type=container", "--format={{.State.ExitCode}}", name)
            ).strip()
        )

    def stop(self, name: str, seconds: int) -> None:
        """Shut the host down in order; the power goes after `seconds`."""
        run(self.argv("stop", "--time", str(seconds), name), timeout=seconds + 60)

    def commit(self, name: str, reference: str) -> None:
        """Make an image of a stopped host's disk."""
        run(self.argv("commit", "--quiet", "--pause=false", name, reference), timeout=600)

    def tag(self, source: str, target: str) -> None:
        """Give an image's disk another name."""
        run(self.argv("tag", source, target))

    def remove(self, *names: Sequence[str] | str) -> None:
        """Delete hosts and their disks, running or not; no error for one that is not there."""
        if names:
            run(
                self.argv("rm", "--force", "--ignore", "--time", "0", *map(str, names)), timeout=300
            )

    def containers(self) -> list[str]:
        """Names of all hosts, running or not."""
        return run(self.argv("ps", "--all", "--format", "{{.Names}}")).split()

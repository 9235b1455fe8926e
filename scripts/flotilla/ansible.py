"""Run playbooks: with Mitogen where it fits, on this fleet's account, and with an honest ending."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from flotilla import environment
from flotilla.aws.session import subprocess_environment
from flotilla.errors import INTERRUPTED, BadOption, FlotillaError, HostFailed, Unreachable
from flotilla.leash import leashed
from flotilla.settings import Settings

MITOGEN_VARIABLE = "FLOTILLA_MITOGEN"
_STOP_SECONDS = 15

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RECAP = re.compile(
    r"^(?P<host>\S+)\s+: ok=(?P<ok>\d+)\s+changed=(?P<changed>\d+)"
    r"\s+unreachable=(?P<unreachable>\d+)\s+failed=(?P<failed>\d+)"
)


@dataclass(frozen=True, slots=True)
class Playbook:
    """What to run; ``name`` is the file's stem in ``playbooks/``."""

    name: str
    limit: str | None = None
    tags: Sequence[str] = ()
    check: bool = False  # with --diff: say what would change, change nothing
    variables: Mapping[str, Any] | None = None  # seen by everybody on this machine: no secrets


@dataclass(frozen=True, slots=True)
class Counts:
    """One host's line of the recap."""

    ok: int
    changed: int
    unreachable: int
    failed: int


@dataclass(frozen=True, slots=True)
class Run:
    """How a playbook ended; ``recap`` is by host and empty when it never got that far."""

    playbook: str
    code: int
    recap: Mapping[str, Counts]
    seconds: float

    @property
    def changed(self) -> int:
        """Tasks that changed something, over all hosts."""
        return sum(counts.changed for counts in self.recap.values())


def arguments(settings: Settings, playbook: Playbook) -> list[str]:
    """The command line, for a process whose working directory is the repository."""
    line = ["ansible-playbook", "-i", f"inventory/{settings.env}", f"playbooks/{playbook.name}.yml"]
    if playbook.limit:
        line += ["--limit", playbook.limit]
    if playbook.tags:
        line += ["--tags", ",".join(playbook.tags)]
    if playbook.check:
        line += ["--check", "--diff"]
    if playbook.variables:
        line += ["--extra-vars", json.dumps(dict(playbook.variables), sort_keys=True)]
    return line


def variables(
    settings: Settings, base: Mapping[str, str], *, mitogen: Path | None, colour: bool
) -> dict[str, str]:
    """The environment to run in; ``mitogen`` is its folder of strategy plugins, None without it."""
    ours = {
        environment.VARIABLE: settings.env,
        "ANSIBLE_CONFIG": str(settings.root / "ansible.cfg"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', os.defpath)}",
        # The pipe we read would make Python hold output back, and progress would come in lumps.
        "PYTHONUNBUFFERED": "1",
    }
    if not any("utf" in base.get(name, "").lower() for name in ("LC_ALL", "LC_CTYPE", "LANG")):
        # Ansible refuses to start in any other locale, and cron has none.
        ours["LC_ALL"] = "C.UTF-8"
    if mitogen:
        ours |= {"ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS": str(mitogen)}
    if colour:
        ours["ANSIBLE_FORCE_COLOR"] = "1"
    return subprocess_environment(settings, base) | ours


def mitogen_plugins(base: Mapping[str, str] = os.environ) -> Path | None:
    """The strategy plugins of an installed Mitogen that knows this Ansible, else None.

    ``FLOTILLA_MITOGEN=off`` leaves it out.
    """
    spec = None if base.get(MITOGEN_VARIABLE) == "off" else _spec("ansible_mitogen")
    if spec is None or not spec.origin:
        return None
    folder = Path(spec.origin).parent
    source = (folder / "loaders.py").read_text(encoding="utf-8")
    known = fits(source, metadata.version("ansible-core"))
    return folder / "plugins" / "strategy" if known else None


def fits(source: str, ansible: str) -> bool:
    """Whether the Mitogen whose ``loaders.py`` is ``source`` supports that version of Ansible.

    It states the oldest release it knows (some versions the newest, too) and raises in the middle
    of a run outside.
    """
    limits = {
        name: (int(major), int(minor))
        for name, major, minor in re.findall(
            r"^ANSIBLE_VERSION_(MIN|MAX) = \((\d+), (\d+)\)", source, re.MULTILINE
        )
    }
    here = tuple(int(part) for part in re.findall(r"\d+", ansible)[:2])
    return "MIN" in limits and limits["MIN"] <= here <= limits.get("MAX", here)


def run(
    settings: Settings,
    playbook: Playbook,
    *,
    say: Callable[[str], None],
    base: Mapping[str, str] = os.environ,
    colour: bool = False,
) -> Run:
    """Run a playbook, handing each line of its output to ``say`` as it comes.

    The caller has made ``var/<env>`` fit the fleet (``inventory.load``, ``hosts.access.prepare``).
    Never raises for how Ansible ended: see ``failure``. An interrupt waits for Ansible to stop.
    """
    if not (settings.root / "playbooks" / f"{playbook.name}.yml").exists():
        known = sorted(path.stem for path in (settings.root / "playbooks").glob("*.yml"))
        raise BadOption(
            f"there is no playbook {playbook.name!r}; playbooks/ has: {', '.join(known)}"
        )
    start = time.monotonic()
    recap: dict[str, Counts] = {}
    environ = variables(settings, base, mitogen=mitogen_plugins(base), colour=colour)
    with leashed(arguments(settings, playbook), cwd=settings.root, env=environ) as process:
        try:
            for line in process.stdout or ():
                say(line.rstrip("\n"))
                recap |= counted(line)
        except BaseException:
            _stop(process)
            raise
    return Run(playbook.name, process.returncode, recap, time.monotonic() - start)


def counted(line: str) -> dict[str, Counts]:
    """The counts in one line of output by host; empty for a line that is not part of the recap."""
    found = _RECAP.match(_COLOUR.sub("", line))
    if not found:
        return {}
    numbers = {key: int(value) for key, value in found.groupdict().items() if key != "host"}
    return {found["host"]: Counts(**numbers)}


def failure(ended: Run, *, env: str) -> FlotillaError | KeyboardInterrupt | None:
    """What to raise for how a playbook ended, None when all is well.

    Ansible exits 4 both for unreachable hosts and for a playbook it cannot parse; the recap tells
    the two apart.
    """
    failed = sorted(host for host, counts in ended.recap.items() if counts.failed)
    silent = sorted(host for host, counts in ended.recap.items() if counts.unreachable)
    again = f"{environment.VARIABLE}={env} fab fleet.status"
    if ended.code == INTERRUPTED:
        return KeyboardInterrupt()
    if failed:
        return HostFailed(
            f"playbook {ended.playbook} failed on {', '.join(failed)}"
            + (f"; {', '.join(silent)} did not answer" if silent else ""),
            why="the failed task and its reason are in the output above",
            next=again,
        )
    if silent:
        return Unreachable(
            f"playbook {ended.playbook}: no answer from {', '.join(silent)}", next=again
        )
    if ended.code:
        return FlotillaError(
            f"ansible-playbook {ended.playbook} exited {ended.code} before any host was tried",
            why="its message is in the output above",
            untouched="No host was changed" if not ended.recap else "",
        )
    return None


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _stop(process: subprocess.Popen[str]) -> None:
    """Ctrl-C is for Ansible as well: let it finish its sentence, then end it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()

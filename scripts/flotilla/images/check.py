"""Boot a new image and look whether it is fit for use."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from flotilla.aws import console, workbench
from flotilla.aws import images as edge
from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.files import replace
from flotilla.hosts import keys, known_hosts
from flotilla.images import facts, sbom
from flotilla.rules import images as rules
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

BOOT_SECONDS = 180
COMMAND_SECONDS = 120


def check(
    settings: Settings,
    bench: workbench.Workbench,
    image: rules.Image,
    *,
    tags: dict[str, str],
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Boot ``image``, check it, keep its bill of materials, terminate the host.

    Returns what was found on it; ``sbom_not_kept`` says why the bill was not, empty when it was.
    Raises HostFailed with every fault, Unreachable when the host does not come up.
    """
    host = workbench.launch(settings, bench, image.image_id, tags=tags)
    try:
        found = _look(settings, host, expected(settings.root, image.role), sleep=sleep)
    finally:
        workbench.terminate(settings, host.instance_id)
    inventory = found.pop("inventory")
    wrong = rules.faults(expected(settings.root, image.role), found)
    disks = edge.describe(settings, image.image_id)["BlockDeviceMappings"]
    if not all(disk["Ebs"].get("Encrypted") for disk in disks if "Ebs" in disk):
        wrong.append("its boot volume is not encrypted")
    if wrong:
        raise HostFailed(
            f"image {image.name} ({image.image_id}) is not fit for use: {'; '.join(wrong)}",
            untouched="It stays Status=baked, and nothing launches it",
            next="mend the role, then: fab images.bake",
        )
    return found | {
        "packages": len(inventory["packages"]),
        "sbom_not_kept": sbom.keep(settings, image, inventory),
    }


def expected(root: Path, image: str) -> dict[str, Any]:
    """What must be true of an image: base's expectations and its own, from packer/*/expect.yml."""
    whole: dict[str, Any] = {"units": {}, "commands": {}, "absent": []}
    for name in dict.fromkeys((rules.BASE, image)):
        path = root / "packer" / name / "expect.yml"
        try:
            own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise FlotillaError(f"{path} cannot be read: {error}") from error
        whole["units"] |= own.get("units", {})
        whole["commands"] |= own.get("commands", {})
        whole["absent"] += own.get("absent", [])
    return whole


def _look(
    settings: Settings,
    host: workbench.TestHost,
    wanted: dict[str, Any],
    *,
    sleep: Callable[[float], None],
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="flotilla-check-") as folder:
        known = Path(folder) / "known_hosts"
        theirs = _host_keys(settings, host, sleep)
        replace(known, "".join(f"{host.address} {key}\n" for key in theirs))
        answer = _answer(settings, host, known, wanted, sleep)
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        raise HostFailed(
            f"{host.instance_id}: the check printed no JSON: {answer[-300:]}"
        ) from error
    return found


def _host_keys(
    settings: Settings, host: workbench.TestHost, sleep: Callable[[float], None]
) -> tuple[str, ...]:
    try:
        return until(
            lambda: known_hosts.parse(console.output(settings, host.instance_id)),
            seconds=BOOT_SECONDS,
            every=0.5,
            sleep=sleep,
        )
    except DeadlineError as error:
        raise Unreachable(
            f"{host.instance_id} printed no SSH host keys in {BOOT_SECONDS} s: it did not boot, or "
            "cloud-init did not run"
        ) from error


def _answer(
    settings: Settings,
    host: workbench.TestHost,
    known: Path,
    wanted: dict[str, Any],
    sleep: Callable[[float], None],
) -> str:
    """What facts.py printed there. Tried again while SSH does not let us in (255) yet."""
    script = Path(facts.__file__).read_text(encoding="utf-8")
    command = f"sudo -n python3 - {shlex.quote(json.dumps(wanted))}"
    argv = [*_ssh(settings, host, known), command]
    last: list[str] = []

    def attempt() -> subprocess.CompletedProcess[str] | None:
        done = subprocess.run(
            argv, input=script, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        last[:] = done.stderr.strip().splitlines()[-1:]
        return None if done.returncode == 255 else done

    try:
        done = until(attempt, seconds=BOOT_SECONDS, every=0.5, sleep=sleep)
    except (DeadlineError, subprocess.TimeoutExpired) as error:
        raise Unreachable(
            f"{host.instance_id} at {host.address} does not let us in: {' '.join(last) or error}"
        ) from error
    if done.returncode:
        raise HostFailed(f"{host.instance_id}: the check ended with {done.returncode}: {last}")
    return done.stdout


def _ssh(settings: Settings, host: workbench.TestHost, known: Path) -> list[str]:
    option = partial(str.format, "-o{}={}")
    return [
        "ssh",
        "-F/dev/null",
        f"-i{keys.ensure(settings)}",
        option("IdentitiesOnly", "yes"),
        option("BatchMode", "yes"),
        option("ConnectTimeout", "5"),
        option("StrictHostKeyChecking", "yes"),
        option("UserKnownHostsFile", str(known)),
        option("GlobalKnownHostsFile", "/dev/null"),
        option("LogLevel", "ERROR"),
        f"{settings.ssh.user}@{host.address}",
    ]

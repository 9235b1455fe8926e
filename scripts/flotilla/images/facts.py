"""Runs on a host booted from a new image, as root, and prints what the check wants to know as JSON.

Sent over SSH: ``python3 - '<expected as JSON>'``. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import re
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

_COMMAND_SECONDS = 20
_DPKG_FIELDS = (
    *("db:Status-Status", "Package", "Version", "Architecture"),
    *("source:Package", "source:Version"),
)
# What apt installs from: sources, the mirrors cloud images name in files of their own, pins, keys.
_APT = (
    *(
        "/etc/apt/sources.list",
        "/etc/apt/sources.list.d/*.list",
        "/etc/apt/sources.list.d/*.sources",
    ),
    *("/etc/apt/mirrors/*", "/etc/apt/keyrings/*.asc"),
    *("/etc/apt/preferences", "/etc/apt/preferences.d/*"),
)
# Python that dpkg does not know of can only be in these.
_NOT_DEBIANS = ("usr/local", "opt", "srv", "home", "root")


def run(*argv: str) -> tuple[int, str]:
    """Exit code and output of a command; 127 when there is no such program."""
    try:
        done = subprocess.run(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout.strip()


def unit(name: str) -> list[str]:
    """[enabled, active] as systemctl says."""
    return [
        run("systemctl", "is-enabled", name)[1].splitlines()[-1:][0] or "not-found",
        run("systemctl", "is-active", name)[1],
    ]


def matching(pattern: str) -> list[Path]:
    """The files that an absolute pattern names."""
    return sorted(Path("/").glob(pattern.lstrip("/")))


def fingerprint(line: str) -> str:
    """The SHA256 fingerprint of an OpenSSH public key, as ssh-keygen prints it."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def authorized_keys() -> list[str]:
    """Fingerprints of the keys that may log in, each once."""
    texts = [
        path.read_text(encoding="utf-8")
        for pattern in ("/root/.ssh/authorized_keys", "/home/*/.ssh/authorized_keys")
        for path in matching(pattern)
    ]
    # cloud-init lets root in only to say who to log in as: its line starts with options.
    keys = [line[line.find("ssh-") :] for text in texts for line in text.splitlines()]
    return sorted({fingerprint(key) for key in keys if key.startswith("ssh-")})


def read_json(path: str) -> Any:
    """The content of a JSON file, None when there is none."""
    file = Path(path)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def packages() -> list[list[str]]:
    """What dpkg has installed: name, version, architecture, source and the source's version."""
    form = "\\t".join(f"${{{field}}}" for field in _DPKG_FIELDS) + "\\n"
    rows = [line.split("\t") for line in run("dpkg-query", "--show", "-f", form)[1].splitlines()]
    return [row[1:] for row in rows if row[0] == "installed"]


def distributions() -> list[list[str]]:
    """Python distributions that came by no Debian package: name, version, folder.

    One whose metadata was cut off has the name of its folder.
    """
    found = []
    for root in _NOT_DEBIANS:
        for pattern in ("*.dist-info/METADATA", "*.egg-info/PKG-INFO"):
            for path in Path("/", root).rglob(pattern):
                headers = HeaderParser().parsestr(path.read_text("utf-8", errors="replace"))
                name = headers["Name"] or path.parent.name
                found.append([name, headers["Version"] or "", str(path.parent.parent)])
    return sorted(found)


def apt() -> dict[str, str]:
    """apt's configuration by path, without passwords and without keys that are not text."""
    texts = {}
    for pattern in _APT:
        for path in matching(pattern):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            texts[str(path)] = re.sub(r"//[^/@\s]+@", "//", text)
    return texts


def inventory() -> dict[str, Any]:
    """What ``flotilla.rules.sbom`` makes a bill of materials of."""
    system = platform.freedesktop_os_release()
    return {
        "distribution": system["ID"],
        "release": system.get("VERSION_ID", ""),
        "suite": system.get("VERSION_CODENAME", ""),
        "architecture": run("dpkg", "--print-architecture")[1],
        "packages": packages(),
        "python": distributions(),
        "apt": apt(),
    }


def collect(expected: dict[str, Any]) -> dict[str, Any]:
    """Everything ``flotilla.rules.images.faults`` looks at, and what is installed."""
    failed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend")[1]
    commands = {name: run(*argv) for name, argv in expected.get("commands", {}).items()}
    machine_id = Path("/etc/machine-id").read_bytes().strip()
    return {
        "units": {name: unit(name) for name in expected.get("units", {})},
        "commands": {name: {"rc": rc, "output": text} for name, (rc, text) in commands.items()},
        "present": [str(p) for pattern in expected.get("absent", ()) for p in matching(pattern)],
        "failed_units": [line.split()[0] for line in failed.splitlines() if line.strip()],
        "image": read_json("/etc/flotilla/image.json"),
        "cloudwatch_agent": read_json("/etc/flotilla/cloudwatch_agent.json"),
        "machine_id_sha256": hashlib.sha256(machine_id).hexdigest(),
        "host_keys": sorted(
            fingerprint(path.read_text(encoding="utf-8"))
            for path in matching("/etc/ssh/ssh_host_*.pub")
        ),
        "authorized_keys": authorized_keys(),
        "inventory": inventory(),
    }


if __name__ == "__main__":
    run("systemctl", "is-system-running", "--wait")
    json.dump(collect(json.loads(sys.argv[1])), sys.stdout)

"""Runs on a host booted from a new image, as root, and prints what the check wants to know as JSON.

Sent over SSH: ``python3 - '<expected as JSON>'``. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_COMMAND_SECONDS = 20


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


def collect(expected: dict[str, Any]) -> dict[str, Any]:
    """Everything ``flotilla.rules.images.faults`` looks at."""
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
    }


if __name__ == "__main__":
    run("systemctl", "is-system-running", "--wait")
    json.dump(collect(json.loads(sys.argv[1])), sys.stdout)

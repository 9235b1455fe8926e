#!/usr/bin/env python3
"""Remove the identity of this host, so that an image taken of it boots as somebody else.

Leaves fingerprints (never keys) of what it removed in /etc/flotilla/image.json: the check of the
finished image boots it and compares, which proves that the new host made its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

RECORD = Path("/etc/flotilla/image.json")
MACHINE_ID = Path("/etc/machine-id")
# A host that boots trusts no certificate before it knows which were revoked since. The files stay:
# without them sshd takes no key at all.
EMPTY = ("/etc/ssh/flotilla/user_ca.pub", "/etc/ssh/flotilla/revoked")
REMOVE = (
    "/etc/ssh/flotilla/applied.json",
    "/etc/ssh/flotilla/principals/*",
    "/etc/ssh/ssh_host_*",
    "/home/*/.ssh/authorized_keys",
    "/root/.ssh/authorized_keys",
    "/home/*/.*_history",
    "/root/.*_history",
    "/home/*/.ansible",
    "/root/.ansible",
    "/home/*/~*",
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/log/journal/*",
    "/var/log/*.log",
    "/var/log/apt/*",
    "/var/cache/apt/archives/*.deb",
    "/var/cache/apt/*.bin",
    "/etc/apt/apt.conf.d/00flotilla-bake",
    "/etc/dpkg/dpkg.cfg.d/00flotilla-bake",
)


def fingerprint(public_key: Path) -> str:
    """The SHA256 fingerprint of an OpenSSH public key, as ssh-keygen prints it."""
    blob = base64.b64decode(public_key.read_text().split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def main() -> None:
    """Record, then remove."""
    record = json.loads(os.environ["FLOTILLA_IMAGE"])
    record["sealed_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record["machine_id_sha256"] = hashlib.sha256(MACHINE_ID.read_bytes().strip()).hexdigest()
    record["host_keys"] = sorted(map(fingerprint, Path("/etc/ssh").glob("ssh_host_*.pub")))
    RECORD.parent.mkdir(mode=0o755, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    RECORD.chmod(0o644)
    paths = [str(path) for pattern in REMOVE for path in Path("/").glob(pattern.lstrip("/"))]
    subprocess.run(["rm", "-rf", "--", *paths], check=True)
    for path in map(Path, EMPTY):
        if path.parent.is_dir():
            path.write_text("")
    MACHINE_ID.write_text("")  # empty, not absent: systemd then makes a new one at boot
    subprocess.run(
        ["cloud-init", "clean", "--logs", "--seed"], check=True, stdout=subprocess.DEVNULL
    )
    os.sync()


if __name__ == "__main__":
    main()

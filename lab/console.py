"""What GetConsoleOutput answers: the host's real console, and the block a client learns host keys
from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from lab.errors import HostNotRunning
from lab.hosts import HostSet

# EC2 gives the last 64 KiB.
_MOST = 64 * 1024
_KEYS = tuple(f"/etc/ssh/ssh_host_{kind}_key.pub" for kind in ("ed25519", "ecdsa", "rsa"))
# podman's k8s-file format: time, stream, F for a full line or P for a part of one.
_LINE = re.compile(r"^\S+ std(?:out|err) ([FP]) (.*)$")


def plain(lines: Iterable[str]) -> str:
    """The text a host printed, out of podman's log format."""
    text = []
    for line in lines:
        match = _LINE.match(line.rstrip("\n"))
        if match:
            text.append(match.group(2).rstrip("\r") + ("\n" if match.group(1) == "F" else ""))
    return "".join(text)


def key_block(keys: Iterable[str]) -> str:
    """Host keys as cloud-init prints them on the console of an EC2 instance; empty while there are
    none.
    """
    listed = [key.strip() for key in keys if key.strip()]
    if not listed:
        return ""
    return (
        "\n".join(["-----BEGIN SSH HOST KEY KEYS-----", *listed, "-----END SSH HOST KEY KEYS-----"])
        + "\n"
    )


def output(hosts: HostSet, instance_id: str) -> tuple[str, datetime]:
    """Console text of an instance, oldest first, and when it was taken."""
    path = hosts.console(instance_id)
    text = plain(path.read_text(errors="replace").splitlines()) if path.exists() else ""
    block = key_block(_host_keys(hosts, instance_id))
    return text[-(_MOST - len(block)) :] + block, datetime.now(UTC)


def _host_keys(hosts: HostSet, instance_id: str) -> list[str]:
    found = []
    for path in _KEYS:
        try:
            found.append(hosts.read(instance_id, path).decode(errors="replace"))
        except (OSError, HostNotRunning):
            continue
    return found

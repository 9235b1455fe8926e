#!/usr/bin/python3
"""Install a pinned release of the CloudWatch agent, or say on the host why it is not there."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: cloudwatch_agent_package
short_description: Install a pinned release of the CloudWatch agent, or record why it is not there
description:
  - Downloads package, signature and key. Installs only what has the pinned SHA-256 and a good
    signature by the key with the pinned fingerprint; anything else fails and changes nothing.
  - Where the download host does not answer, the agent is left out and I(record) says why. Later
    runs do not try again unless I(retry) is set, so that they stay fast and quiet.
options:
  version:
    description: Release, as it stands in the package's version.
    type: str
    required: true
  url:
    description: The package; its signature is at the same address with .sig.
    type: str
    required: true
  key_url:
    description: The vendor's public key.
    type: str
    required: true
  sha256:
    description: What the package must hash to.
    type: str
    required: true
  fingerprint:
    description: Of the key that must have signed it.
    type: str
    required: true
  record:
    description: File that says whether the agent is there.
    type: path
    required: true
  retry:
    description: Try again although the record says it could not be had.
    type: bool
    default: false
  timeout_seconds:
    description: For each connection to the download host.
    type: int
    default: 10
author: [Flotilla maintainers]
"""

EXAMPLES = r"""
- name: Install the agent
  cloudwatch_agent_package:
    version: "{{ cloudwatch_agent_version }}"
    url: "{{ cloudwatch_agent_url }}"
    key_url: "{{ cloudwatch_agent_key_url }}"
    sha256: "{{ cloudwatch_agent_sha256['x86_64'] }}"
    fingerprint: "{{ cloudwatch_agent_key_fingerprint }}"
    record: /etc/flotilla/cloudwatch_agent.json
"""

RETURN = r"""
installed: {description: Whether the pinned release is on the host., type: bool, returned: always}
reason: {description: Why it is not; empty when it is., type: str, returned: always}
"""

PACKAGE = "amazon-cloudwatch-agent"


class UntrustedError(Exception):
    """What was downloaded is not what was pinned."""


def verify(package: Path, signature: Path, key: Path, sha256: str, fingerprint: str) -> None:
    """Raise UntrustedError unless checksum, signature and signer are the pinned ones."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != sha256.lower():
        raise UntrustedError(f"its SHA-256 is {found}, not {sha256}")
    keyring = key.with_suffix(".keyring")
    keyring.write_bytes(dearmoured(key.read_bytes()))
    argv = ["gpgv", "--status-fd", "1", "--keyring", keyring, signature, package]
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False)
    signers = {line.split()[-1] for line in done.stdout.splitlines() if " VALIDSIG " in line}
    if done.returncode or signers != {fingerprint.replace(" ", "").upper()}:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UntrustedError(f"its signature is not the vendor's: {last[0]}")


def dearmoured(key: bytes) -> bytes:
    """The bytes of a key that may come as text; gpgv reads bytes only."""
    if not key.lstrip().startswith(b"-----BEGIN"):
        return key
    body = key.replace(b"\r", b"").split(b"\n\n", 1)[1].split(b"-----END")[0]
    # The last line, after "=", is a checksum that the key's own signatures make superfluous.
    return base64.b64decode(b"".join(line for line in body.split() if not line.startswith(b"=")))


def installed_version() -> str:
    """The package's version on this host, "" when it is not there."""
    argv = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", PACKAGE]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    status, _, version = done.stdout.partition(" ")
    return version if status == "installed" else ""


def download(url: str, target: Path, seconds: int) -> None:
    """Fetch a file; raises OSError (URLError is one) when the host cannot be reached."""
    if not url.startswith("https://"):
        raise UntrustedError("only https:// addresses are downloaded from")
    with urllib.request.urlopen(url, timeout=seconds) as answer, target.open("wb") as file:  # noqa: S310
        while chunk := answer.read(1 << 20):
            file.write(chunk)


def fetch_and_install(params: dict[str, Any]) -> str:
    """The reason why the agent could not be had, "" when it is installed now."""
    with tempfile.TemporaryDirectory() as folder:
        package, signature, key = (Path(folder) / name for name in ("agent.deb", "sig", "key"))
        try:
            # The small ones first: an unreachable host is noticed before 100 MB are asked for.
            download(params["key_url"], key, params["timeout_seconds"])
            download(params["url"] + ".sig", signature, params["timeout_seconds"])
            download(params["url"], package, params["timeout_seconds"])
        except OSError as error:
            # The whole address is one word of 107 letters, which no board has room for.
            url = urllib.parse.urlsplit(params["url"])
            why = getattr(error, "reason", error)
            return f"{Path(url.path).name} could not be downloaded from {url.netloc}: {why}"
        verify(package, signature, key, params["sha256"], params["fingerprint"])
        subprocess.run(
            ["dpkg", "--install", str(package)], check=True, capture_output=True, text=True
        )
    return ""


def write_record(path: Path, content: dict[str, Any]) -> bool:
    """Whether the record had to be changed."""
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return True


def read_record(path: Path) -> dict[str, Any]:
    """What an earlier run wrote, {} when there was none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def main() -> None:
    """Ansible's entry."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            **dict.fromkeys(("version", "url", "key_url", "sha256", "fingerprint"), text),
            "record": {"type": "path", "required": True},
            "retry": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    params = module.params
    record = Path(params["record"])
    version, before = params["version"], read_record(record)
    installed = installed_version().startswith(f"{version}-")
    given_up = before.get("version") == version and before.get("reason") and not params["retry"]
    reason = "" if installed else before.get("reason", "")
    if module.check_mode:
        module.exit_json(changed=not installed and not given_up, installed=installed, reason=reason)
    if not installed and not given_up:
        try:
            reason = fetch_and_install(params)
        except UntrustedError as error:
            module.fail_json(msg=f"{params['url']} was not installed: {error}", installed=False)
        except subprocess.CalledProcessError as error:
            module.fail_json(msg=f"dpkg refused the package: {error.stderr}", installed=False)
        installed = not reason
    content = {"installed": installed, "version": version, "reason": reason}
    changed = write_record(record, content)
    module.exit_json(changed=changed, installed=installed, reason=reason)


if __name__ == "__main__":
    main()

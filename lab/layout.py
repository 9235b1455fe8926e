"""Where the lab keeps its things and which addresses it uses: one frozen description, read
everywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from lab.run import replace

# Everything the lab makes on the machine starts with this, so that leftovers of a crash are
# recognised by name.
PREFIX = "flab"

API_PORT = 4566
API_ADDRESS = "169.254.169.250"
APT_ADDRESS = "169.254.169.253"
APT_PORT = 3142
METADATA_ADDRESS = "169.254.169.254"
SERVICE_ADDRESSES = (API_ADDRESS, APT_ADDRESS, METADATA_ADDRESS)

# Loopback addresses never leave the machine, so a public address of the lab cannot be mistaken for
# a real one.
PUBLIC_POOL = IPv4Network("127.77.0.0/16")
# What instances see of an operator that dials from 127.0.0.N: 198.18.0.N (RFC 2544, never routed).
OPERATOR_LOOPBACK = IPv4Network("127.0.0.0/16")
OPERATOR_SEEN_AS = IPv4Network("198.18.0.0/16")
OPERATOR_SEEN_OTHERWISE = "198.19.0.1"
OPERATOR_NETWORK = IPv4Network("198.18.0.0/15")

VPC_POOLS = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"))

REGION = "eu-central-1"
ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")
ACCOUNT = "123456789012"
IMAGE_OWNER = "136693071363"  # Debian's account on AWS
GUEST_USER = "admin"


@dataclass(frozen=True, slots=True)
class Layout:
    """Directories of one checkout's lab. Machine-wide state is in `machine`: only one lab runs at a
    time.
    """

    repo: Path
    cache: Path
    machine: Path = Path("/run/flotilla-lab")

    @property
    def var(self) -> Path:
        """What belongs to this checkout's lab."""
        return self.repo / "var" / "lab"

    @property
    def log(self) -> Path:
        """`daemon.log`, `lab.jsonl` (what happened), `api.jsonl` (who called what)."""
        return self.var / "log"

    @property
    def credentials(self) -> Path:
        """The operator's AWS credentials file, profile `lab`."""
        return self.var / "aws" / "credentials"

    def write_credentials(self) -> None:
        """Have the operator's credentials file: keys that only the lab knows."""
        self.credentials.parent.mkdir(parents=True, exist_ok=True)
        text = "[lab]\naws_access_key_id = operator\naws_secret_access_key = lab\n"
        if not self.credentials.exists() or self.credentials.read_text() != text:
            replace(self.credentials, text)

    @property
    def instances(self) -> Path:
        """Console log and metadata of each instance, gone with the lab."""
        return self.var / "instances"

    @property
    def amis(self) -> Path:
        """Machine images' metadata; their disks are in `storage`. Outlives the lab."""
        return self.cache / "amis"

    @property
    def storage(self) -> Path:
        """podman's storage: disks of images and hosts. Outlives the lab."""
        return self.cache / "containers"

    @property
    def runroot(self) -> Path:
        """podman's state that a reboot may forget."""
        return self.machine / "containers"

    @property
    def lock(self) -> Path:
        """Locked by the lab process for as long as it lives."""
        return self.machine / "lock"

    @property
    def state(self) -> Path:
        """Who runs and what was changed on the machine: read by the clean-up after a crash."""
        return self.machine / "state.json"


def layout() -> Layout:
    """This checkout's layout; `FLOTILLA_CACHE`, then `XDG_CACHE_HOME`, say where the cache is."""
    named = os.environ.get("FLOTILLA_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Layout(
        repo=Path(__file__).resolve().parent.parent,
        cache=Path(named) if named else base / "flotilla",
    )

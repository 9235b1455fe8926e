"""What a new host finds on its disk at first boot: cloud-init's NoCloud seed, and no identity of
another host.

cloud-init's own EC2 source does not work in a container: it asks an IMDSv2 service for a token only
where the machine's firmware says Amazon. So the same data the API holds is written where cloud-init
looks first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Seed:
    """What cloud-init learns about the host it runs on."""

    instance_id: str
    hostname: str
    public_keys: tuple[str, ...]  # OpenSSH format
    user_data: bytes  # as given to RunInstances; empty for none
    zone: str
    region: str

    def meta_data(self) -> str:
        """The NoCloud `meta-data` file (JSON is YAML)."""
        known = {
            "instance-id": self.instance_id,
            "local-hostname": self.hostname,
            "public-keys": list(self.public_keys),
            "availability-zone": self.zone,
            "region": self.region,
            "cloud-name": "aws",
        }
        return json.dumps(known, indent=1) + "\n"


def plant(seed: Seed, disk: Path) -> None:
    """Write the seed below `disk`, the writable layer of a host that has not booted from it yet.

    The machine id is emptied too: systemd makes one at first boot, and an image made from a host
    carries the old one.
    """
    nocloud = disk / "var/lib/cloud/seed/nocloud"
    nocloud.mkdir(parents=True, exist_ok=True)
    (nocloud / "meta-data").write_text(seed.meta_data())
    (nocloud / "user-data").write_bytes(seed.user_data or b"#cloud-config\n{}\n")
    (nocloud / "user-data").chmod(0o600)
    (disk / "etc").mkdir(exist_ok=True)
    (disk / "etc/machine-id").write_text("")
    (disk / "etc/machine-id").chmod(0o444)
    (disk / "etc/hostname").write_text(f"{seed.hostname}\n")

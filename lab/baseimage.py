"""Build the base machine image: Debian 13 as a cloud would deliver it, from this machine's own
mirror.

The image is named by a hash of everything that goes into it, so it is built once and found again
afterwards.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from lab.errors import Unmet
from lab.layout import APT_ADDRESS, APT_PORT
from lab.mirror import Mirror
from lab.podman import Podman
from lab.run import run

SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
GUEST_FILES = Path(__file__).parent / "guest"
PACKAGES = (
    "acl,apt-utils,bash-completion,ca-certificates,cloud-init,curl,dbus,iproute2,iputils-ping,less,netbase,nftables,"
    "openssh-server,procps,python3,python3-apt,socat,sudo,systemd,systemd-sysv,tzdata"
)
# No documentation in the guests, and no fsync after each file: a bake installs several times faster
# without either.
_DPKG = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
)
_UNITS_OFF = "apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer"
_UNITS_MASKED = (
    "console-getty.service getty@tty1.service systemd-networkd-wait-online.service tmp.mount"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what is in the base image."""

    mirror: Mirror
    check_valid_until: bool

    def sources(self) -> list[str]:
        """The guests' apt sources."""
        lines = [f"deb {self.mirror.archive} {suite} main" for suite in (SUITE, f"{SUITE}-updates")]
        if self.mirror.security:
            lines.append(f"deb {self.mirror.security} {SUITE}-security main")
        return lines

    def apt_conf(self) -> str:
        """How the guests' apt reaches the mirror: only through the lab's proxy."""
        lines = [
            f'Acquire::{scheme}::Proxy "http://{APT_ADDRESS}:{APT_PORT}";'
            for scheme in ("http", "https")
        ]
        lines += ['Acquire::Languages "none";', 'APT::Install-Recommends "false";']
        if not self.check_valid_until:
            lines.append('Acquire::Check-Valid-Until "false";')
        return "\n".join(lines) + "\n"

    def image_id(self) -> str:
        """AMI id that changes whenever the content would."""
        digest = hashlib.sha256()
        parts = [
            SUITE,
            PACKAGES,
            *_DPKG,
            _UNITS_OFF,
            _UNITS_MASKED,
            *self.sources(),
            self.apt_conf(),
            _SETUP,
        ]
        for part in parts:
            digest.update(part.encode() + b"\0")
        for path in sorted(p for p in GUEST_FILES.rglob("*") if p.is_file()):
            digest.update(
                str(path.relative_to(GUEST_FILES)).encode() + b"\0" + path.read_bytes() + b"\0"
            )
        return f"ami-{digest.hexdigest()[:17]}"


# Host keys, machine id and logs belong to a host, not to an image.
# `disable` may fail: not every suite has all of those units, and an absent one is as good as off.
_SETUP = f"""set -eu
cp -r --no-preserve=ownership,mode {{guest}}/. "$1"/
printf '%s' '{{apt_conf}}' > "$1"/etc/apt/apt.conf.d/80image
chroot "$1" systemctl --quiet disable {_UNITS_OFF} || true
chroot "$1" systemctl --quiet mask {_UNITS_MASKED}
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/hostname "$1"/etc/resolv.conf
: > "$1"/etc/machine-id
: > "$1"/etc/resolv.conf
mkdir -p "$1"/var/lib/cloud/seed/nocloud "$1"/var/log/journal
find "$1"/var/log "$1"/var/cache/apt -type f -delete
"""


def recipe(mirror: Mirror) -> Recipe:
    """The recipe for this machine: its mirror, and whether its apt accepts an archive frozen in
    time.
    """
    said = run(["apt-config", "shell", "VALID", "Acquire::Check-Valid-Until/b"])
    return Recipe(mirror=mirror, check_valid_until="VALID='false'" not in said)


def name(built: date) -> str:
    """Name of the base image, as Debian names its images on AWS."""
    return f"debian-13-amd64-{built:%Y%m%d}"


def build(how: Recipe, podman: Podman, reference: str, scratch: Path) -> None:
    """Build the image and import it as `reference`; takes half a minute and some 0.5 GB in
    `scratch` meanwhile.
    """
    if not KEYRING.exists():
        raise Unmet(
            f"{KEYRING} is missing",
            why="the base image's packages are verified with it",
            next_command="apt-get install debian-archive-keyring",
        )
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="base-") as work:
        setup, tarball = Path(work) / "setup", Path(work) / "root.tar"
        setup.write_text("#!/bin/sh\n" + _SETUP.format(guest=GUEST_FILES, apt_conf=how.apt_conf()))
        setup.chmod(0o755)
        argv = [
            "mmdebstrap",
            "--variant=minbase",
            "--mode=root",
            "--format=tar",
            f"--include={PACKAGES}",
        ]
        argv += [
            f"--keyring={KEYRING}",
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",
        ]
        argv += [f"--dpkgopt={option}" for option in _DPKG]
        argv += [] if how.check_valid_until else ['--aptopt=Acquire::Check-Valid-Until "false"']
        argv += [f"--customize-hook={setup}", SUITE, str(tarball), *how.sources()]
        run(argv, timeout=900)
        podman.import_image(tarball, reference)

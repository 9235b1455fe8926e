"""Two hosts that are nothing but their network: namespaces with a cable between them.

The kernel is the real one, and so is nft. Needs root; nothing of the machine's own network is
touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

VPC, INSIDE, ROUTER = "10.77.0.0/16", "10.77.1.1", "10.77.200.200"
# Other addresses of the far side: an operator's, a stranger's, the resolver and EC2's metadata.
OPERATOR, STRANGER, RESOLVER = "198.18.0.5", "203.0.113.9", "10.77.0.2"
METADATA = "169.254.169.254"
FAR = (f"{ROUTER}/16", *(f"{a}/32" for a in (OPERATOR, STRANGER, RESOLVER, METADATA)))


@dataclass(frozen=True)
class Side:
    """One of the two namespaces."""

    name: str

    def argv(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, text: str = "", check: bool = True) -> str:
        done = subprocess.run(
            self.argv(*argv), input=text, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def python(self, program: str, *arguments: str) -> str:
        return self.run(sys.executable, "-c", program, *arguments)

    def spawn(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(sys.executable, "-c", program, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@dataclass(frozen=True)
class Pair:
    """The host that has the filter, and everybody else."""

    host: Side
    far: Side


@pytest.fixture
def pair() -> Iterator[Pair]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    names = [f"fwtest{os.getpid()}{side}" for side in "hf"]
    host, far = (Side(name) for name in names)
    try:
        for name in names:
            made = subprocess.run(
                ["ip", "netns", "add", name], capture_output=True, text=True, check=False
            )
            if made.returncode:
                pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
        host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", names[1])
        for side, addresses in ((host, [f"{INSIDE}/16"]), (far, FAR)):
            commands = [f"address add {address} dev eth0" for address in addresses]
            commands += ["link set lo up", "link set eth0 up"]
            side.run("ip", "-batch", "-", text="\n".join(commands) + "\n")
            # A scan makes thousands of answers a second, and the kernel would hold most back.
            side.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
        host.run("ip", "route", "add", "default", "via", ROUTER)
        yield Pair(host, far)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

"""Public addresses: handed out from the lab's pool, and which host each leads to."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection
from ipaddress import IPv4Network
from typing import Any

from lab.views import live_instances


class Pool:
    """Gives out addresses of a network in turn, so that one given back is not given out again at
    once.
    """

    def __init__(self, network: IPv4Network, in_use: Callable[[], Collection[str]]) -> None:
        self._network = network
        self._in_use = in_use
        self._lock = threading.Lock()
        # The first addresses are left free for tests that want one that certainly leads nowhere.
        self._order = itertools.cycle(range(10, network.num_addresses - 1))

    def take(self) -> str:
        """A free address. Raises `RuntimeError` when there is none."""
        with self._lock:
            taken = set(self._in_use())
            for offset in itertools.islice(self._order, self._network.num_addresses):
                address = str(self._network[offset])
                if address not in taken:
                    return address
        raise RuntimeError(f"every address of {self._network} is in use")


def in_use(ec2: Any) -> set[str]:
    """Public addresses that belong to an interface or are allocated."""
    used = {address.public_ip for address in ec2.addresses}
    return used | {nic.public_ip for nic in ec2.enis.values() if nic.public_ip}


def published(ec2: Any) -> dict[str, str]:
    """Public to private address, for every instance that has a public one."""
    leads: dict[str, str] = {}
    for instance in live_instances(ec2):
        for nic in instance.nics.values():
            if nic.public_ip:
                leads[nic.public_ip] = nic.private_ip_address
    return leads


def associate(ec2: Any, original: Callable[..., Any], **how: Any) -> Any:
    """AssociateAddress with what moto leaves out: whoever had the address, or another address here,
    loses it.
    """
    before = {address.allocation_id: address.eni for address in ec2.addresses}
    given = original(ec2, **how)
    if given.eni is None:
        return given
    given.instance = given.eni.instance
    loser = before.get(given.allocation_id)
    if loser is not None and loser is not given.eni:
        _lose(loser)
    for other in ec2.addresses:
        if other is not given and other.eni is given.eni:
            other.instance = other.eni = other.association_id = None
    given.eni.public_ip = given.public_ip
    return given


def release(ec2: Any, instance: Any) -> None:
    """Take every Elastic IP from an instance that is being terminated."""
    for address in ec2.addresses:
        if address.eni is not None and address.eni.instance is instance:
            address.eni.public_ip = None
            address.instance = address.eni = address.association_id = None


def restore(ec2: Any, instance: Any) -> None:
    """Give an instance's interfaces their Elastic IPs back: moto drops or replaces them over stop
    and start.
    """
    for address in ec2.addresses:
        if address.eni is not None and address.eni.instance is instance:
            address.eni.public_ip = address.public_ip


def _lose(nic: Any) -> None:
    nic.public_ip = None
    if nic.instance is not None and nic.instance.state == "running":
        nic.check_auto_public_ip()

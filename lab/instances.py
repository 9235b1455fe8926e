"""The life of instances: the API's states, moved by what really happens to the hosts.

The API answers at once and the work goes on in a thread, as on AWS; a state is reported only when
it is true. Every change of the API's state is made with the API's lock held, because requests run
in threads too.
"""

from __future__ import annotations

import base64
import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import InstanceState, StateReason

from lab import addresses, firewall, network, views
from lab.errors import LabError
from lab.hosts import HostSet, Spec
from lab.layout import VPC_POOLS
from lab.outage import gate
from lab.seed import Seed

_CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}
# How a container's PID 1 ends when the system in it asks the kernel for a reboot (reboot(2), pid
# namespaces).
_EXIT_REBOOT = 129
_EXIT_KILLED = 137
_REMEMBERED_SECONDS = 3600.0


@dataclass(slots=True)
class _Bridge:
    name: str
    cidr: IPv4Network


@dataclass(slots=True)
class Instances:
    """Moves instances between states and keeps machine-wide state in step with the API's.

    `lock` is the lock under which the EC2 API is served; `reference(image_id)` the podman image of
    an AMI.
    """

    ec2: Callable[[], Any]
    hosts: HostSet
    lock: threading.RLock
    reference: Callable[[str], str]
    log: Callable[[str, Mapping[str, Any]], None]
    launches: dict[str, Any] = field(default_factory=dict)  # reservation by client token
    listeners: list[Callable[[str, str], None]] = field(default_factory=list)
    _bridges: dict[str, _Bridge] = field(default_factory=dict)
    _rules: dict[str, str] = field(default_factory=dict)
    _public: dict[str, str] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)  # when terminated, monotonic seconds
    _reconciling: threading.Lock = field(default_factory=threading.Lock)

    def in_thread(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own; what it raises is logged."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # a thread has nobody else to tell
                self.log("failed", {"what": name, "error": f"{type(error).__name__}: {error}"})

        threading.Thread(target=guarded, name=name, daemon=True).start()

    def set_state(self, instance: Any, state: str, reason: StateReason | None = None) -> None:
        """Show `state` in the API and tell who listens."""
        with self.lock:
            if instance.state == "terminated":
                return
            instance._state = InstanceState(  # noqa: SLF001  moto has no setter
                state, _CODES[state]
            )
            if reason is not None:
                instance.state_reason = reason
        self._tell(instance.id, state)

    def _tell(self, instance_id: str, state: str) -> None:
        self.log("state", {"instance": instance_id, "state": state})
        for listener in list(self.listeners):
            self.in_thread(
                f"listener {instance_id}", functools.partial(listener, instance_id, state)
            )

    # What API actions ask for

    def check_launch(self, subnet_id: str | None) -> None:
        """Refuse, as the API would, a launch into a network this machine cannot give. Nothing is
        changed.
        """
        ec2 = self.ec2()
        vpc_id = ec2.get_subnet(subnet_id).vpc_id if subnet_id else ec2.default_vpc.id
        if vpc_id not in self._bridges:
            self.check_vpc(ec2.vpcs[vpc_id].cidr_block)

    def check_vpc(self, cidr_block: str) -> None:
        """Refuse a VPC whose range this machine uses itself, or that is not a private one."""
        cidr = IPv4Network(cidr_block, strict=False)
        if not any(cidr.subnet_of(pool) for pool in VPC_POOLS):
            pools = " or ".join(map(str, VPC_POOLS))
            raise EC2ClientError(
                "InvalidVpc.Range", f"{cidr_block} is not inside {pools}; choose a range there."
            )
        hidden = network.conflict(cidr, network.machine_routes())
        if hidden is not None:
            raise EC2ClientError(
                "InvalidVpc.Range",
                f"{cidr_block} overlaps {hidden}, which the lab's machine has a route of its"
                " own to. Nothing was created. Choose another range; ip route shows what is taken.",
            )
        for vpc_id, bridge in self._bridges.items():
            if bridge.cidr.overlaps(cidr):
                raise EC2ClientError(
                    "InvalidVpc.Range",
                    f"{cidr_block} overlaps {bridge.cidr} of {vpc_id}, which has instances; a lab's"
                    " machine can give a range once.",
                )

    def launch(self, instance: Any) -> None:
        """Boot a new host for an instance the API just made."""
        for nic in instance.nics.values():
            nic.delete_on_termination = True
            nic.mac_address = network.mac(nic.private_ip_address)
        self.set_state(instance, "pending")
        bridge = self._bridge(instance.vpc_id)
        spec = Spec(
            instance_id=instance.id,
            image=self.reference(instance.image_id),
            bridge=bridge.name,
            cidr=bridge.cidr,
            address=instance.private_ip,
            seed=self._seed(instance),
        )
        self.in_thread(f"launch {instance.id}", lambda: self._launch(instance, spec))

    def start(self, instance: Any, moto_start: Callable[[Any], Any]) -> Any:
        """StartInstances for one instance; returns its previous state."""
        previous = InstanceState(instance.state, instance.state_code)
        if instance.state in ("pending", "running"):
            return previous
        self._require(instance, "stopped", "started")
        moto_start(instance)
        addresses.restore(self.ec2(), instance)
        self.set_state(instance, "pending")
        self.in_thread(f"start {instance.id}", lambda: self._start(instance))
        return previous

    def stop(self, instance: Any, moto_stop: Callable[[Any], Any], *, force: bool) -> Any:
        """StopInstances for one instance; returns its previous state."""
        previous = InstanceState(instance.state, instance.state_code)
        if instance.state == "stopped" or (instance.state == "stopping" and not force):
            return previous
        if instance.state not in ("running", "stopping", "pending"):
            self._require(instance, "running", "stopped")
        self.set_state(instance, "stopping")
        self.in_thread(f"stop {instance.id}", lambda: self._stop(instance, moto_stop, force=force))
        return previous

    def terminate(self, instance: Any, moto_terminate: Callable[[Any], Any]) -> Any:
        """TerminateInstances for one instance; returns its previous state."""
        previous = InstanceState(instance.state, instance.state_code)
        if instance.state in ("shutting-down", "terminated"):
            return previous
        self.set_state(instance, "shutting-down")
        addresses.release(self.ec2(), instance)
        self.in_thread(
            f"terminate {instance.id}", lambda: self._terminate(instance, moto_terminate)
        )
        return previous

    def reboot(self, instance: Any) -> None:
        """RebootInstances for one instance: it stays `running`, as on AWS."""
        self._require(instance, "running", "rebooted")

        def work() -> None:
            self.hosts.stop(instance.id)
            self._boot_again(instance)

        self.in_thread(f"reboot {instance.id}", work)

    def exited(self, instance_id: str, exit_code: int) -> None:
        """A host ended that nobody asked to end: from within, by a crash or by a fault."""
        instance = self.ec2().get_instance_by_id(instance_id)
        self.log("exited", {"instance": instance_id, "exit_code": exit_code})
        if instance is None or instance.state not in ("running", "pending"):
            return
        if exit_code == _EXIT_REBOOT:
            self._boot_again(instance)
        elif exit_code == _EXIT_KILLED:
            died = StateReason("Server.InternalError: the host died", "Server.InternalError")
            self.set_state(instance, "stopped", died)
        elif instance.instance_initiated_shutdown_behavior == "terminate":
            with self.lock:
                instance.terminate()
        else:
            code = "Client.InstanceInitiatedShutdown"
            self.set_state(instance, "stopped", StateReason(f"{code}: shut down from within", code))

    # Keeping the machine in step

    def reconcile(self) -> None:
        """Make addresses and packet filters what the API now says; cheap when nothing changed."""
        with self._reconciling:
            with self.lock:
                ec2 = self.ec2()
                public = addresses.published(ec2)
                seen = [v for v in views.security_views(ec2) if self.hosts.netns(v.instance_id)]
                rules = {view.instance_id: firewall.ruleset(view) for view in seen}
                self._forget(ec2)
                gone = [vpc_id for vpc_id in self._bridges if vpc_id not in ec2.vpcs]
            if public != self._public:
                network.publish(public)
                self._public = public
            for instance_id, text in rules.items():
                self._filter(instance_id, text)
            for vpc_id in gone:
                bridge = self._bridges.pop(vpc_id)
                network.remove_bridge(bridge.name, bridge.cidr)

    def _forget(self, ec2: Any) -> None:
        """Drop instances that were terminated an hour ago, as EC2 does."""
        for reservation_id, reservation in list(ec2.reservations.items()):
            since = [self._ended.get(i.id, time.monotonic()) for i in reservation.instances]
            if since and max(since) < time.monotonic() - _REMEMBERED_SECONDS:
                del ec2.reservations[reservation_id]

    def _filter(self, instance_id: str, text: str) -> None:
        netns = self.hosts.netns(instance_id)
        if netns is None or self._rules.get(instance_id) == text:
            return
        try:
            firewall.apply(instance_id, netns, text)
        except LabError as error:  # one host's failure must not keep the others from theirs
            self.log("failed", {"what": f"packet filter of {instance_id}", "error": str(error)})
            return
        self._rules[instance_id] = text

    def _bridge(self, vpc_id: str) -> _Bridge:
        if vpc_id not in self._bridges:
            cidr = IPv4Network(self.ec2().vpcs[vpc_id].cidr_block)
            taken = {bridge.name for bridge in self._bridges.values()}
            name = next(n for n in map(network.bridge_name, range(1000)) if n not in taken)
            network.add_bridge(name, cidr)
            self._bridges[vpc_id] = _Bridge(name, cidr)
        return self._bridges[vpc_id]

    def _seed(self, instance: Any) -> Seed:
        pair = self.ec2().key_pairs.get(instance.key_name) if instance.key_name else None
        return Seed(
            instance_id=instance.id,
            hostname=f"ip-{instance.private_ip.replace('.', '-')}",
            public_keys=(pair.public_key.strip(),) if pair else (),
            user_data=base64.b64decode(instance.user_data.as_bytes())
            if instance.user_data
            else b"",
            zone=instance.placement.zone,
            region=instance.region_name,
        )

    # What runs in threads

    def _launch(self, instance: Any, spec: Spec) -> None:
        try:
            self._connect(spec)
            if instance.state == "pending":
                self.hosts.boot(instance.id)
        except LabError as error:
            self.log("launch-failed", {"instance": instance.id, "error": str(error)})
            with self.lock:
                instance.terminate()
            instance.state_reason = StateReason(
                f"Server.InternalError: {error}", "Server.InternalError"
            )
            return
        if instance.state == "pending":
            self.set_state(instance, "running")
        elif instance.state in ("shutting-down", "terminated"):
            self.hosts.remove(instance.id)

    def _connect(self, spec: Spec) -> None:
        """The host's network, with its packet filter in force before anything runs in it."""
        self.hosts.prepare(spec)
        self.reconcile()
        if spec.instance_id not in self._rules:
            raise LabError(f"the packet filter of {spec.instance_id} could not be loaded")

    def _start(self, instance: Any) -> None:
        try:
            self.hosts.start(instance.id)
        except LabError as error:
            self.set_state(
                instance,
                "stopped",
                StateReason(f"Server.InternalError: {error}", "Server.InternalError"),
            )
            raise
        self.set_state(instance, "running", StateReason())
        self.reconcile()

    def _stop(self, instance: Any, moto_stop: Callable[[Any], Any], *, force: bool) -> None:
        gate.linger("StopInstances", over=lambda: not self.hosts.pid(instance.id))
        self.hosts.stop(instance.id, force=force)
        with self.lock:
            if instance.state != "stopping":
                return
            moto_stop(instance)
            addresses.restore(self.ec2(), instance)
        self.set_state(instance, "stopped")
        self.reconcile()

    def _terminate(self, instance: Any, moto_terminate: Callable[[Any], Any]) -> None:
        self.reconcile()
        if self.hosts.pid(instance.id):
            self.hosts.stop(instance.id)
        self.hosts.remove(instance.id)
        self._rules.pop(instance.id, None)
        with self.lock:
            moto_terminate(instance)
            self._ended[instance.id] = time.monotonic()
        self._tell(instance.id, "terminated")
        self.reconcile()

    def _boot_again(self, instance: Any) -> None:
        if instance.state == "running":
            self.hosts.start(instance.id)

    @staticmethod
    def _require(instance: Any, state: str, verb: str) -> None:
        if instance.state != state:
            raise EC2ClientError(
                "IncorrectInstanceState",
                f"The instance '{instance.id}' is not in a state from which it can be {verb}:"
                f" it is {instance.state}.",
            )

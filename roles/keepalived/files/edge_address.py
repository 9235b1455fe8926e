#!/usr/bin/python3
"""Give this instance the fleet's Elastic IP while keepalived says that it is the VRRP master.

Events come through a pipe from keepalived, in order. Besides, every few seconds keepalived is asked
for its state and EC2 for the address's owner. Events alone are not enough: AssociateAddress
succeeds for two callers in the same second, and an address can be moved by hand. The winner of a
healed split gets no event but MASTER_RX_LOWER_PRI, once for each advert of the other master: it
asks for the owner at once, and claims what is not its own. Who was cut off is to lose when the
split heals, or the address would move a second time: it lowers its priority through a file that
keepalived follows.

Invariant: the address is claimed only on fresh word from keepalived that this host is the master.
A keepalived that does not answer (dead, frozen) means hands off: the other host has taken over.
"""

import argparse
import http.client
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

RUN = Path("/run/flotilla-address")
EVENTS = RUN / "events"
KEEPALIVED_STATE = RUN / "keepalived.json"
OUR_STATE = RUN / "state.json"
YIELDS = RUN / "yields"
KEEPALIVED_PID = Path("/run/keepalived.pid")
METADATA = "169.254.169.254"
# HAProxy's statistics, which load balancers may ask each other for.
PEER_PORT = 8404

INSTANCE = "edge"
STATES = {0: "INIT", 1: "BACKUP", 2: "MASTER", 3: "FAULT"}
# A claim that EC2 does not confirm is given up after this long; the next look starts another.
CLAIM_SECONDS = 30.0
# Two reads in a row must say that the address is ours: of two claims in one second both "succeed".
CONFIRMATIONS = 2
# So much is taken off the priority of who yields. Those of a fleet's load balancers
# are 10 apart.
YIELDING = 100
# After a split has healed, who yields hears the other master by then: four of its adverts.
SETTLE_SECONDS = 1.0
# keepalived's word for an advert of a master with a lower priority.
HEARD_LOWER = "MASTER_RX_LOWER_PRI"
# Such adverts come four times a second for as long as we hear that master and it does not hear us.
# To look at each would use up what EC2 allows an account.
HEARD_LOWER_SECONDS = 1.0


@dataclass(frozen=True)
class Address:
    """An Elastic IP as EC2 describes it; ``owner`` is an instance id, ``leads_to`` its private
    address; both are empty while nobody has it.
    """

    allocation_id: str
    public_ip: str
    owner: str
    leads_to: str = ""


class Addresses(Protocol):
    """What is needed of EC2."""

    def read(self) -> Address:
        """The address now."""

    def associate(self, allocation_id: str) -> None:
        """Ask for it, whoever has it."""

    def runs(self, instance: str) -> bool:
        """Whether an instance runs, by EC2's word."""


def parse_events(text: str) -> list[str]:
    """The states of our instance in what keepalived wrote, oldest first.

    Lines look like ``INSTANCE "edge" MASTER 200``; others are not about us.
    """
    states = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "INSTANCE" and words[1].strip('"') == INSTANCE:
            states.append(words[2])
    return states


def state_after(events: list[str], before: str) -> str:
    """Our VRRP state once ``events`` happened; a master that hears a lower one stays master."""
    states = ["MASTER" if event == HEARD_LOWER else event for event in events]
    states = [state for state in states if state in (*STATES.values(), "STOP")]
    return states[-1] if states else before


def wants_claim(events: list[str]) -> bool:
    """Did this host become the master in these events, and is it at their end?

    A master that only heard a lower one was it before: whether the address is its own is for
    `verdict`, which knows who has it. A claim for each advert would be four calls of EC2 a second.
    """
    return state_after(events, "") == "MASTER" and "MASTER" in events


def parse_state(text: str) -> str:
    """Our instance's state in keepalived's JSON dump; UNKNOWN when it is not there."""
    try:
        document = json.loads(text)
    except ValueError:
        return "UNKNOWN"
    instances = document.get("vrrp", []) if isinstance(document, dict) else document
    for instance in instances:
        data = instance.get("data", {})
        if data.get("iname") == INSTANCE:
            return STATES.get(data.get("state"), "UNKNOWN")
    return "UNKNOWN"


def verdict(vrrp: str, owner: str, me: str, *, was_mine: bool, cut_off: bool) -> tuple[bool, str]:
    """Whether to claim, and the sentence that says why or why not.

    ``was_mine`` says that EC2 confirmed the address as ours since we became the master; ``cut_off``
    that its owner is another load balancer which runs and which this host cannot reach. Both
    together are a split: the other one is the master there and serves. Taking the address back
    would only have it taken away again, and every move cuts all connections.
    """
    if vrrp == "MASTER":
        if owner == me:
            return False, "master, and the address is here"
        if was_mine and cut_off:
            return False, f"master, cut off from {owner}, which took the address and serves"
        return True, f"master, but the address is with {owner or 'nobody'}"
    if owner == me:
        # Nobody serves better by our letting go: the new master takes it from us.
        return False, f"{vrrp}, and the address is still here until the master takes it"
    return False, f"{vrrp}, and the address is with {owner or 'nobody'}"


def claim(
    addresses: Addresses,
    known: Address,
    me: str,
    *,
    still_master: Callable[[], bool],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    unheard: Callable[[], bool] = lambda: False,
) -> tuple[Address, str]:
    """Associate until EC2 confirms it, we are no longer master, or CLAIM_SECONDS are over.

    ``known`` is the address as last read; the first try needs only its allocation id, so that an
    outage is not prolonged by a read. ``unheard`` says, each time that EC2 does not answer, whether
    this host may be cut off; then the other one is listened for before the next try. Returns the
    address as read last and a sentence.
    """
    started = clock()
    pause, seen, trouble = 0.1, 0, ""
    address, fresh, settle = known, True, False
    while still_master():
        try:
            # After any trouble read first: the allocation id may be of an address that is gone.
            if not fresh:
                address, fresh = addresses.read(), True
            if settle and address.owner != me:
                settle = False
                sleep(SETTLE_SECONDS)
                continue
            if seen == 0:
                addresses.associate(address.allocation_id)
            address = addresses.read()
            seen = seen + 1 if address.owner == me else 0
            trouble = f"it is with {address.owner or 'nobody'}"
        except Exception as error:  # whatever it was, the answer is to try again
            seen, fresh, trouble = 0, False, str(error)
            settle = unheard()
        if seen >= CONFIRMATIONS:
            return address, f"claimed {address.public_ip} in {clock() - started:.2f} s"
        if clock() - started > CLAIM_SECONDS:
            return (
                address,
                f"could not claim {address.public_ip} in {CLAIM_SECONDS:.0f} s: {trouble}",
            )
        sleep(pause)
        pause = 0.1 if seen else min(pause * 1.5, 2.0)
    return address, "no longer the master: left the address to the new one"


class Ec2Addresses:
    """The fleet's Elastic IP, found by its tag Name."""

    def __init__(self, name: str, me: str) -> None:
        import boto3  # noqa: PLC0415  half a second that tests of the rest need not pay
        from botocore.config import Config  # noqa: PLC0415

        # Short: the move may cut the connection a call is on, and the loop tries again anyhow.
        config = Config(connect_timeout=1, read_timeout=3, retries={"total_max_attempts": 1})
        self._ec2: Any = boto3.client("ec2", config=config)
        self._name = name
        self._me = me
        self._chosen = ""

    def read(self) -> Address:
        """The address now. Raises LookupError when the tag names none, or several at first.

        A second address that is given the same tag later changes nothing: the first is served on.
        """
        filters = [{"Name": "tag:Name", "Values": [self._name]}]
        named = self._ec2.describe_addresses(Filters=filters)["Addresses"]
        found = [one for one in named if one["AllocationId"] == self._chosen] or named
        if len(found) != 1:
            raise LookupError(f"{len(found)} Elastic IPs have the tag Name={self._name}, not one")
        self._chosen = found[0]["AllocationId"]
        return Address(
            found[0]["AllocationId"],
            found[0]["PublicIp"],
            found[0].get("InstanceId", ""),
            found[0].get("PrivateIpAddress", ""),
        )

    def associate(self, allocation_id: str) -> None:
        """Ask for it, whoever has it."""
        self._ec2.associate_address(
            AllocationId=allocation_id, InstanceId=self._me, AllowReassociation=True
        )

    def runs(self, instance: str) -> bool:
        """Whether an instance runs. One that was stopped keeps its address."""
        found = self._ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        return any(i["State"]["Name"] == "running" for one in found for i in one["Instances"])


class Keepalived:
    """keepalived as it can be asked: by a pipe of events, and by a signal for its state."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = ""

    def events(self, timeout: float) -> list[str]:
        """States that arrived, waiting at most ``timeout`` seconds for the first."""
        ready, _, _ = select.select([self._pipe], [], [], timeout)
        if not ready:
            return []
        self._rest += os.read(self._pipe, 65536).decode(errors="replace")
        whole, _, self._rest = self._rest.rpartition("\n")
        return parse_events(whole)

    def state(self, *, timeout: float = 1.0) -> str:
        """What it says it is, written after we asked; UNKNOWN when it does not answer in time."""
        before = KEEPALIVED_STATE.stat().st_mtime_ns if KEEPALIVED_STATE.exists() else 0
        try:
            # The real-time signal `keepalived --signum=JSON` names.
            os.kill(int(KEEPALIVED_PID.read_text()), signal.SIGRTMIN + 2)
        except (OSError, ValueError):
            return "UNKNOWN"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if KEEPALIVED_STATE.exists() and KEEPALIVED_STATE.stat().st_mtime_ns > before:
                state = parse_state(KEEPALIVED_STATE.read_text())
                if state != "UNKNOWN":  # else it is still being written
                    return state
        return "UNKNOWN"


class Keeper:
    """The loop: an event or the passing of time, a verdict, perhaps a claim, a note of it."""

    def __init__(
        self,
        addresses: Addresses,
        keepalived: Keepalived,
        me: str,
        peers: frozenset[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._addresses = addresses
        self._keepalived = keepalived
        self._me = me
        self._peers = peers
        self._vrrp = "UNKNOWN"
        self._was_mine = False
        self._yields = False
        self._note = ""
        self._clock = clock
        self._sleep = sleep
        self._address = addresses.read()
        self._looked = clock()

    def turn(self, every: float) -> None:
        """Wait for an event, at most ``every`` seconds, and do what it asks for."""
        events = self._events(every)
        if wants_claim(events):
            self._vrrp = "MASTER"
            self._claim()
            return
        self._vrrp = state_after(events, "") or self._keepalived.state()
        self._looked = self._clock()
        self._address = self._addresses.read()
        if self._vrrp != "MASTER":
            self._was_mine = False
            self._yield(False)
        # Who is heard is not cut off, whether or not its HAProxy answers.
        cut_off = HEARD_LOWER not in events and self._is_cut_off()
        must_claim, note = verdict(
            self._vrrp, self._address.owner, self._me, was_mine=self._was_mine, cut_off=cut_off
        )
        self._tell(note)
        if must_claim and self._yields:
            # We were cut off. The split may have healed in this moment.
            self._sleep(SETTLE_SECONDS)
            if self._still_master():
                self._vrrp = self._keepalived.state()
            must_claim = self._vrrp == "MASTER"
        if must_claim:
            self._claim()
        elif self._vrrp == "MASTER" and self._address.owner != self._me:
            self._yield(True)

    def _is_cut_off(self) -> bool:
        """Whether the owner may serve where we cannot see it. One that is dead never lets go."""
        leads_to = self._address.leads_to
        if leads_to not in self._peers or is_reachable(leads_to):
            return False
        return self._addresses.runs(self._address.owner)

    def _events(self, timeout: float) -> list[str]:
        """What keepalived says next; adverts of a lower master alone are gathered for a while."""
        events = self._keepalived.events(timeout)
        while events and set(events) == {HEARD_LOWER}:
            left = self._looked + HEARD_LOWER_SECONDS - self._clock()
            if left <= 0:
                break
            more = self._keepalived.events(left)
            if not more:
                break
            events += more
        return events

    def failed(self, error: Exception) -> None:
        """Tell that a turn ended in ``error``; what was known before stays known."""
        self._tell(f"cannot tell who has the address: {error}", read=False)
        self._unheard()

    def _unheard(self) -> bool:
        """EC2 does not answer. A master whom no other load balancer answers either may be the one
        that is cut off, while another one serves.
        """
        is_alone = self._vrrp == "MASTER" and not any(map(is_reachable, self._peers))
        if is_alone:
            self._yield(True)
        return is_alone

    def _yield(self, yields: bool) -> None:  # noqa: FBT001
        """Lose against another master, or not any more."""
        self._yields = yields
        wanted = f"{YIELDING if yields else 0}\n"
        if not YIELDS.exists() or YIELDS.read_text() != wanted:
            draft = YIELDS.with_suffix(".new")
            draft.write_text(wanted)
            draft.rename(YIELDS)
            how = "gives way to whoever else is master" if yields else "has its priority again"
            sys.stderr.write(f"{how}\n")

    def _claim(self) -> None:
        self._address, note = claim(
            self._addresses,
            self._address,
            self._me,
            still_master=self._still_master,
            clock=self._clock,
            sleep=self._sleep,
            unheard=self._unheard,
        )
        self._tell(note)

    def _still_master(self) -> bool:
        self._vrrp = state_after(self._keepalived.events(0), self._vrrp)
        return self._vrrp == "MASTER"

    def _tell(self, note: str, *, read: bool = True) -> None:
        serves = self._vrrp == "MASTER" and self._address.owner == self._me
        self._was_mine |= serves
        if read and serves:
            self._yield(False)
        if note != self._note:
            sys.stderr.write(f"{note}\n")
        self._note = note
        seen = {
            "vrrp": self._vrrp,
            "mine": self._address.owner == self._me,
            "note": note,
            "at": time.time(),
            **asdict(self._address),
        }
        draft = OUR_STATE.with_suffix(".new")
        draft.write_text(json.dumps(seen) + "\n")
        draft.rename(OUR_STATE)


def instance_id() -> str:
    """Who we are, from the instance metadata with a session token (IMDSv2)."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = metadata("PUT", "/latest/api/token", lifetime)
    return metadata("GET", "/latest/meta-data/instance-id", {"X-aws-ec2-metadata-token": token})


def metadata(method: str, path: str, headers: dict[str, str]) -> str:
    """One answer of the metadata service. Raises OSError when it refuses or does not answer."""
    connection = http.client.HTTPConnection(METADATA, timeout=2)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise OSError(f"{method} {METADATA}{path} answered {answer.status}")
    return text


def is_reachable(address: str) -> bool:
    """Does that load balancer answer us? Without its HAProxy it refuses, and that is an answer."""
    try:
        with socket.create_connection((address, PEER_PORT), timeout=0.5):
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def open_events() -> int:
    """The pipe, made if it is not there. Opened for both ends, so that it never reports an end."""
    if not EVENTS.exists():
        os.mkfifo(EVENTS, 0o600)
    return os.open(EVENTS, os.O_RDWR | os.O_NONBLOCK)


def tell_systemd(message: str) -> None:
    """sd_notify, where systemd listens."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(message.encode(), path.replace("@", "\0", 1))


def main() -> int:
    """Run until stopped. Trouble at the start ends the process: systemd starts it again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", required=True, help="tag Name of the Elastic IP")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--peers", default="", help="the other load balancers, comma between")
    arguments = parser.parse_args()
    keepalived = Keepalived(open_events())
    tell_systemd("READY=1")
    me = instance_id()
    peers = frozenset(filter(None, arguments.peers.split(",")))
    keeper = Keeper(Ec2Addresses(arguments.name, me), keepalived, me, peers)
    while True:
        try:
            keeper.turn(arguments.every)
        except Exception as error:  # the API may be away for hours; keepalived is not
            keeper.failed(error)


if __name__ == "__main__":
    sys.exit(main())

"""An EC2 endpoint with ready-made answers, so that what is measured is the client.

It serves DescribeInstances in pages and counts its calls and the time it was busy. It is no EC2: it
ignores filters, and every instance in it belongs to the fleet.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
ACCOUNT = "111122223333"


@dataclass(frozen=True, slots=True)
class Instance:
    """What varies between instances; the rest is as AWS answers for a small host."""

    instance_id: str
    private_ip: str
    zone: str
    tags: tuple[tuple[str, str], ...]
    public_ip: str | None = None
    state: str = "running"


def fleet(
    count: int, *, name: str = "flotilla", env: str = "lab", region: str = "eu-central-1"
) -> list[Instance]:
    """``count`` instances of a fleet: nearly all app hosts, in three zones, each with six tags."""
    roles = ["bastion", *["lb"] * 2, *["mysql"] * 3, *["redis"] * 3]
    roles += ["app"] * (count - len(roles))
    numbers: Counter[str] = Counter()
    instances = []
    for index, role in enumerate(roles[:count]):
        numbers[role] += 1
        tags = {
            "Name": f"{role}-{numbers[role]}", "Role": role, "Fleet": name, "Env": env,
            "ManagedBy": "flotilla", "Cluster": f"{name}-{env}-{role}",
        }  # fmt: skip
        instances.append(
            Instance(
                instance_id=f"i-{index:017x}",
                private_ip=f"10.{index // 62500 + 77}.{index // 250 % 250}.{index % 250 + 4}",
                zone=f"{region}{'abc'[index % 3]}",
                tags=tuple(tags.items()),
                public_ip=f"198.51.100.{index + 1}" if role in {"bastion", "lb"} else None,
            )
        )
    return instances


class FakeEc2:
    """The endpoint, listening on a free port of 127.0.0.1 from ``with`` on."""

    def __init__(self, instances: Sequence[Instance], *, page: int = 1000) -> None:
        self.calls: Counter[str] = Counter()
        self.busy_seconds = 0.0
        self._lock = threading.Lock()
        self._pages = [
            _page(
                instances[start : start + page],
                start + page if start + page < len(instances) else None,
            )
            for start in range(0, max(len(instances), 1), page)
        ]
        self._size = page
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                start = time.perf_counter()
                length = int(self.headers.get("Content-Length", 0))
                form = parse_qs(self.rfile.read(length).decode())
                action = form.get("Action", ["?"])[0]
                # Before the answer: its reader may look at the count before this thread goes on.
                endpoint._count(action)
                body = endpoint._answer(action, form)
                self.send_response(200)
                self.send_header("Content-Type", "text/xml;charset=UTF-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                endpoint._spent(time.perf_counter() - start)

            def log_message(self, *arguments: object) -> None:
                """Say nothing: stderr belongs to the benchmark."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering: from now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def _count(self, action: str) -> None:
        with self._lock:
            self.calls[action] += 1

    def _spent(self, seconds: float) -> None:
        with self._lock:
            self.busy_seconds += seconds

    def _answer(self, action: str, form: dict[str, list[str]]) -> bytes:
        if action == "DescribeInstances":
            start = int(form.get("NextToken", ["0"])[0])
            return self._pages[start // self._size]
        return f'<{action}Response xmlns="{NAMESPACE}"/>'.encode()


def _page(instances: Sequence[Instance], following: int | None) -> bytes:
    items = "".join(map(_item, instances))
    token = f"<nextToken>{following}</nextToken>" if following is not None else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><DescribeInstancesResponse xmlns="{NAMESPACE}">'
        f"<requestId>0</requestId><reservationSet>{items}</reservationSet>{token}"
        "</DescribeInstancesResponse>"
    ).encode()


def _item(one: Instance) -> str:
    tags = "".join(
        f"<item><key>{escape(key)}</key><value>{escape(value)}</value></item>"
        for key, value in one.tags
    )
    public = f"<ipAddress>{one.public_ip}</ipAddress>" if one.public_ip else ""
    dashed = one.private_ip.replace(".", "-")
    return f"""<item><reservationId>r-{one.instance_id[2:]}</reservationId>
<ownerId>{ACCOUNT}</ownerId><groupSet/><instancesSet><item>
<instanceId>{one.instance_id}</instanceId><imageId>ami-0123456789abcdef0</imageId>
<instanceState><code>16</code><name>{one.state}</name></instanceState>
<privateDnsName>ip-{dashed}.eu-central-1.compute.internal</privateDnsName><dnsName/><reason/>
<keyName>operator</keyName><amiLaunchIndex>0</amiLaunchIndex><productCodes/>
<instanceType>t3.small</instanceType><launchTime>2026-01-02T03:04:05.000Z</launchTime>
<placement><availabilityZone>{one.zone}</availabilityZone><groupName/><tenancy>default</tenancy>
</placement><monitoring><state>disabled</state></monitoring>
<subnetId>subnet-0123456789abcdef0</subnetId><vpcId>vpc-0123456789abcdef0</vpcId>
<privateIpAddress>{one.private_ip}</privateIpAddress>{public}
<sourceDestCheck>true</sourceDestCheck><groupSet><item><groupId>sg-0123456789abcdef0</groupId>
<groupName>flotilla-lab-app</groupName></item></groupSet><architecture>x86_64</architecture>
<rootDeviceType>ebs</rootDeviceType><rootDeviceName>/dev/xvda</rootDeviceName>
<blockDeviceMapping><item><deviceName>/dev/xvda</deviceName><ebs>
<volumeId>vol-{one.instance_id[2:]}</volumeId><status>attached</status>
<attachTime>2026-01-02T03:04:06.000Z</attachTime>
<deleteOnTermination>true</deleteOnTermination></ebs></item></blockDeviceMapping>
<virtualizationType>hvm</virtualizationType><clientToken>{one.instance_id}</clientToken>
<tagSet>{tags}</tagSet><hypervisor>xen</hypervisor><networkInterfaceSet><item>
<networkInterfaceId>eni-{one.instance_id[2:]}</networkInterfaceId><status>in-use</status>
<macAddress>02:00:00:00:00:01</macAddress><privateIpAddress>{one.private_ip}</privateIpAddress>
<sourceDestCheck>true</sourceDestCheck><attachment>
<attachmentId>eni-attach-{one.instance_id[2:]}</attachmentId><deviceIndex>0</deviceIndex>
<status>attached</status></attachment></item></networkInterfaceSet>
<iamInstanceProfile><arn>arn:aws:iam::{ACCOUNT}:instance-profile/flotilla-lab-app</arn>
<id>AIPA0123456789ABCDEF0</id></iamInstanceProfile><ebsOptimized>false</ebsOptimized>
<enaSupport>true</enaSupport><metadataOptions><state>applied</state>
<httpTokens>required</httpTokens><httpPutResponseHopLimit>1</httpPutResponseHopLimit>
<httpEndpoint>enabled</httpEndpoint></metadataOptions></item></instancesSet></item>"""

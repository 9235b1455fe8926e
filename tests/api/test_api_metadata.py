"""What an instance learns about itself: the real service, moto's real state, real requests."""

from __future__ import annotations

import functools
import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from moto import mock_aws
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.base_backend import BackendDict

from lab import metadata
from lab.identity import LIFETIME, RENEW_BEFORE, Identity
from lab.ports import Context

# Not the lab's own region: there, other tests of this process make moto launch real hosts.
REGION = "eu-west-1"
SELF, STRANGER = "127.0.0.21", "127.0.0.99"
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})


# One session for all: every new one reads EC2's whole description again.
SESSION = boto3.Session(
    region_name=REGION, aws_access_key_id="testing", aws_secret_access_key="testing"
)


class Clients:
    @staticmethod
    @functools.cache
    def client(service: str):
        return SESSION.client(service)


class Addresses:
    """The one question the service asks about hosts; on this machine every 127.x can be dialled."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}

    def by_source_address(self, address: str) -> str | None:
        return self.owners.get(address)


def backend(name: str):
    backends: BackendDict = get_backend(name)
    account = backends[DEFAULT_ACCOUNT_ID]
    return account["aws" if name in ("iam", "sts") else REGION]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield Clients()


@pytest.fixture
def hosts() -> Addresses:
    return Addresses()


@pytest.fixture
def service(cloud: Clients, hosts: Addresses) -> Iterator[metadata.WsgiService]:
    context = Context(
        hosts=hosts,
        ec2=lambda: backend("ec2"),
        backend=backend,
        account=DEFAULT_ACCOUNT_ID,
        region=REGION,
        zones=("eu-west-1a",),
        cache="",
        log=lambda *_: None,
        on_instance_state=lambda _: None,
    )
    running = metadata.serve(context, ("127.0.0.1", 0))
    yield running
    running.close()


class Host:
    """A client that dials from the address of one instance."""

    def __init__(self, service: metadata.WsgiService, source: str = SELF) -> None:
        self.service, self.source = service, source

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(
            *self.service.address, timeout=5, source_address=(self.source, 0)
        )
        try:
            connection.request(
                method, path, headers={name.replace("_", "-"): v for name, v in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def token(self, ttl: str = "60") -> str:
        status, body = self.ask(
            "PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds=ttl
        )
        assert status == 200, body
        return body

    def get(self, path: str, token: str | None = None) -> str:
        status, body = self.ask("GET", path, X_aws_ec2_metadata_token=token or self.token())
        assert status == 200, (path, status, body)
        return body

    def status(self, path: str, token: str | None = None) -> int:
        return self.ask("GET", path, X_aws_ec2_metadata_token=token or self.token())[0]


def launch(cloud: Clients, hosts: Addresses, address: str = SELF, **options) -> str:
    ec2 = cloud.client("ec2")
    image = ec2.register_image(Name=f"test-{address}")["ImageId"]
    answer = ec2.run_instances(
        ImageId=image, MinCount=1, MaxCount=1, InstanceType="t3.micro", **options
    )
    instance_id = answer["Instances"][0]["InstanceId"]
    hosts.owners[address] = instance_id
    return instance_id


def with_role(cloud: Clients, name: str = "fleet-lab-app") -> dict[str, dict[str, str]]:
    iam = cloud.client("iam")
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return {"IamInstanceProfile": {"Name": name}}


def test_without_a_token_nothing_is_told(cloud, hosts, service) -> None:
    launch(cloud, hosts)
    assert Host(service).ask("GET", "/latest/meta-data/instance-id")[0] == 401


def test_who_asks_without_a_token_is_counted_as_ec2_counts_it(cloud, hosts, service) -> None:
    instance_id, other = launch(cloud, hosts), launch(cloud, hosts, STRANGER)

    def rejected(of: str) -> float:
        now = datetime.now(UTC)
        answer = cloud.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/EC2",
            MetricName="MetadataNoTokenRejected",
            Dimensions=[{"Name": "InstanceId", "Value": of}],
            StartTime=now - timedelta(minutes=5),
            EndTime=now + timedelta(minutes=5),
            Period=3600,
            Statistics=["Sum"],
        )
        return sum(point["Sum"] for point in answer["Datapoints"])

    Host(service).ask("GET", "/latest/meta-data/")
    Host(service).ask("GET", "/latest/meta-data/iam/security-credentials/")
    Host(service).get("/latest/meta-data/instance-id")
    Host(service).status("/latest/meta-data/", "a token of nobody")
    assert (rejected(instance_id), rejected(other)) == (2, 0)


def test_a_token_opens_the_instance_s_own_data(cloud, hosts, service) -> None:
    instance_id = launch(cloud, hosts)
    assert Host(service).get("/latest/meta-data/instance-id") == instance_id


def test_a_token_of_one_instance_is_worth_nothing_to_another(cloud, hosts, service) -> None:
    launch(cloud, hosts)
    launch(cloud, hosts, STRANGER)
    stolen = Host(service).token()
    assert Host(service, STRANGER).status("/latest/meta-data/instance-id", stolen) == 401


def test_a_token_ends_with_its_time() -> None:
    clock = [100.0]
    tokens = metadata.Tokens(now=lambda: clock[0])
    token = tokens.issue("i-1", 60)
    clock[0] = 159.9
    assert tokens.is_good(token, "i-1")
    clock[0] = 160.1
    assert not tokens.is_good(token, "i-1")


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-5", "soon"])
def test_a_token_needs_a_lifetime_within_six_hours(cloud, hosts, service, ttl) -> None:
    launch(cloud, hosts)
    status, _ = Host(service).ask(
        "PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds=ttl
    )
    assert status == 400


def test_a_request_through_a_proxy_gets_no_token(cloud, hosts, service) -> None:
    launch(cloud, hosts)
    status, _ = Host(service).ask(
        "PUT",
        "/latest/api/token",
        X_aws_ec2_metadata_token_ttl_seconds="60",
        X_Forwarded_For="192.0.2.1",
    )
    assert status == 403


def test_an_address_without_an_instance_is_told_nothing(cloud, hosts, service) -> None:
    launch(cloud, hosts)
    assert Host(service, STRANGER).ask("GET", "/latest/meta-data/")[0] == 404


def test_the_options_of_the_launch_are_honoured(cloud, hosts, service) -> None:
    launch(cloud, hosts, MetadataOptions={"HttpTokens": "optional"})
    assert Host(service).ask("GET", "/latest/meta-data/ami-launch-index") == (200, "0")
    launch(cloud, hosts, STRANGER, MetadataOptions={"HttpEndpoint": "disabled"})
    assert Host(service, STRANGER).ask("GET", "/latest/meta-data/")[0] == 403


def test_the_public_address_follows_the_elastic_ip(cloud, hosts, service) -> None:
    first, second = launch(cloud, hosts), launch(cloud, hosts, STRANGER)
    ec2 = cloud.client("ec2")
    address = ec2.allocate_address(Domain="vpc")
    ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=first)
    assert Host(service).get("/latest/meta-data/public-ipv4") == address["PublicIp"]
    ec2.associate_address(
        AllocationId=address["AllocationId"], InstanceId=second, AllowReassociation=True
    )
    assert Host(service, STRANGER).get("/latest/meta-data/public-ipv4") == address["PublicIp"]
    assert Host(service).status("/latest/meta-data/public-ipv4") == 404
    assert Host(service).status("/latest/meta-data/public-hostname") == 404


def test_what_the_api_says_is_what_the_instance_reads(cloud, hosts, service) -> None:
    instance_id = launch(cloud, hosts)
    said = cloud.client("ec2").describe_instances(InstanceIds=[instance_id])
    instance = said["Reservations"][0]["Instances"][0]
    nic = instance["NetworkInterfaces"][0]
    mac = f"network/interfaces/macs/{nic['MacAddress']}"
    expected = {
        "ami-id": instance["ImageId"],
        "instance-type": "t3.micro",
        "local-ipv4": instance["PrivateIpAddress"],
        "local-hostname": instance["PrivateDnsName"],
        "mac": nic["MacAddress"],
        "placement/availability-zone": instance["Placement"]["AvailabilityZone"],
        "placement/region": REGION,
        "reservation-id": said["Reservations"][0]["ReservationId"],
        f"{mac}/subnet-id": instance["SubnetId"],
        f"{mac}/vpc-id": instance["VpcId"],
        f"{mac}/interface-id": nic["NetworkInterfaceId"],
        f"{mac}/security-group-ids": nic["Groups"][0]["GroupId"],
    }
    host, token = Host(service), Host(service).token()
    assert {path: host.get(f"/latest/meta-data/{path}", token) for path in expected} == expected


def test_every_listed_file_can_be_read(cloud, hosts, service) -> None:
    ec2 = cloud.client("ec2")
    ec2.create_key_pair(KeyName="ops", KeyType="ed25519")
    launch(cloud, hosts, KeyName="ops", **with_role(cloud))
    host, token = Host(service), Host(service).token()

    def walk(path: str) -> list[str]:
        found: list[str] = []
        for name in host.get(path, token).splitlines():
            child = path + (name.partition("=")[0] + "/" if "=" in name else name)
            found += walk(child) if child.endswith("/") else [child]
        return found

    files = walk("/latest/")
    assert "/latest/meta-data/public-keys/0/openssh-key" in files
    assert "/latest/dynamic/instance-identity/document" in files
    assert all(host.status(path, token) == 200 for path in files)


def test_tags_are_told_only_where_the_launch_enables_them(cloud, hosts, service) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "mysql-2"}]}]
    launch(
        cloud, hosts, TagSpecifications=tags, MetadataOptions={"InstanceMetadataTags": "enabled"}
    )
    launch(cloud, hosts, STRANGER, TagSpecifications=tags)
    assert Host(service).get("/latest/meta-data/tags/instance/Name") == "mysql-2"
    assert Host(service, STRANGER).status("/latest/meta-data/tags/instance/Name") == 404


def test_user_data_arrives_byte_for_byte(cloud, hosts, service) -> None:
    text = "#cloud-config\nruncmd: [echo, 'ä']\n"
    launch(cloud, hosts, UserData=text)
    assert Host(service).get("/latest/user-data") == text


def test_the_identity_document_names_account_and_instance(cloud, hosts, service) -> None:
    instance_id = launch(cloud, hosts)
    document = json.loads(Host(service).get("/latest/dynamic/instance-identity/document"))
    assert (document["accountId"], document["instanceId"]) == (DEFAULT_ACCOUNT_ID, instance_id)


def test_no_spot_interruption_is_announced(cloud, hosts, service) -> None:
    launch(cloud, hosts)
    assert Host(service).status("/latest/meta-data/spot/termination-time") == 404


def test_the_keys_it_gives_are_the_role_and_the_instance_to_the_api(cloud, hosts, service) -> None:
    instance_id = launch(cloud, hosts, **with_role(cloud, "fleet-lab-lb"))
    base = "/latest/meta-data/iam/security-credentials/"
    role = Host(service).get(base)
    keys = json.loads(Host(service).get(base + role))
    caller = boto3.client(
        "sts",
        region_name=REGION,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["Token"],
    ).get_caller_identity()
    assert caller["Arn"].endswith(f":assumed-role/fleet-lab-lb/{instance_id}")
    assert metadata.role_of(keys["AccessKeyId"]) == "fleet-lab-lb"
    assert metadata.role_of("AKIANOBODY") is None


def test_without_an_instance_profile_there_are_no_keys(cloud, hosts, service) -> None:
    launch(cloud, hosts)
    assert Host(service).status("/latest/meta-data/iam/security-credentials/") == 404


def test_keys_are_renewed_before_they_expire(cloud) -> None:
    name = with_role(cloud)["IamInstanceProfile"]["Name"]
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    identity = Identity(backend, REGION, now=lambda: clock[0])
    arn = cloud.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    role = identity.role(arn["Arn"])
    first = identity.keys("i-1", role)
    clock[0] += LIFETIME - RENEW_BEFORE - timedelta(seconds=1)
    assert identity.keys("i-1", role) == first
    clock[0] += timedelta(seconds=2)
    renewed = identity.keys("i-1", role)
    assert renewed.access_key != first.access_key
    assert first.expires - clock[0] > timedelta(minutes=50)


def test_binary_user_data_is_not_read_as_text(cloud, hosts, service) -> None:
    blob = bytes(range(256))
    launch(cloud, hosts, UserData=blob)
    connection = http.client.HTTPConnection(*service.address, source_address=(SELF, 0))
    token = Host(service).token()
    connection.request("GET", "/latest/user-data", headers={"X-aws-ec2-metadata-token": token})
    assert connection.getresponse().read() == blob
    connection.close()

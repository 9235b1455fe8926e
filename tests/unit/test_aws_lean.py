"""AWS without boto3, as a database host calls it: against botocore's signer and moto's API."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from flotilla.aws import lease
from flotilla.aws.items import Change, ChangedError
from flotilla.aws.lean import AnswerError, Api, LeanTable, parameters, versioned
from flotilla.aws.own_role import OwnRole
from flotilla.aws.peers import Peers
from flotilla.aws.signature import Keys, signed
from flotilla.errors import Refused, Unreachable

REGION = "eu-central-1"
KEYS = Keys("AKIDEXAMPLE", "secret", "token/with+signs=")
text = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=20)


@given(
    text.map(str.strip).filter(bool),
    st.binary(max_size=50),
    st.sampled_from(["https://dynamodb.eu-central-1.amazonaws.com/", "http://127.0.0.1:4566"]),
    st.sampled_from([KEYS, Keys("A", "s")]),
)
def test_it_signs_as_botocore_does(value, body, url, keys):
    request = AWSRequest("POST", url, data=body, headers={"X-Amz-Target": value})
    theirs = SigV4Auth(
        Credentials(keys.access, keys.secret, keys.token or None), "dynamodb", REGION
    )
    theirs.add_auth(request)
    stamp = request.context["timestamp"]
    now = _seconds(stamp)
    ours = signed(
        url, {"X-Amz-Target": value}, body, keys, service="dynamodb", region=REGION, now=now
    )
    assert ours["X-Amz-Date"] == stamp
    assert ours["Authorization"] == request.headers["Authorization"]


def _seconds(stamp):
    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def theirs(endpoint):
    """boto3 on the same API."""

    def client(service):
        return boto3.client(
            service,
            REGION,
            endpoint_url=endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    yield client
    _reset(endpoint)


def _reset(endpoint):
    host, port = endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as stream:
        stream.sendall(
            b"POST /moto-api/reset HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        )
        stream.recv(1000)


@pytest.fixture
def api(endpoint):
    return Api(REGION, lambda: Keys("test", "test"), endpoint_url=endpoint)


@pytest.fixture
def table(api, theirs):
    theirs("dynamodb").create_table(
        TableName="clusters",
        KeySchema=[{"AttributeName": "cluster", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "cluster", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return LeanTable(api, "clusters", "cluster", "lease_term")


def test_an_item_is_changed_only_as_it_was_said_to_be(table, theirs):
    assert table.get("mysql") is None
    table.update("mysql", Change({"term": {"N": "1"}}, {"term": None}))
    with pytest.raises(ChangedError):
        table.update("mysql", Change({"term": {"N": "9"}}, {"term": None}))
    table.update("mysql", Change({"term": {"N": "2"}, "x": {"S": "é"}}, {"term": {"N": "1"}}))
    table.update("mysql", Change({}, {"term": {"N": "2"}}, ("x",)))
    found = theirs("dynamodb").get_item(TableName="clusters", Key={"cluster": {"S": "mysql"}})
    assert found["Item"] == table.get("mysql") == {"cluster": {"S": "mysql"}, "term": {"N": "2"}}


def test_a_lease_taken_by_one_host_is_held_for_the_next(table):
    def take(holder):
        return lease.acquire(
            table, "mysql", holder=holder, reason="failover", seconds=15, now=100.0
        )

    first = take("mysql-2")
    with pytest.raises(lease.Held, match="held by mysql-2"):
        take("mysql-3")
    lease.release(table, first, now=101.0)
    assert take("mysql-3").term == first.term + 1


def test_a_missing_table_is_refused_with_the_command_that_makes_it(api):
    with pytest.raises(Refused, match="there is no table nowhere") as refused:
        LeanTable(api, "nowhere", "id", "term").get("x")
    assert refused.value.next == "fab fleet.provision"


def test_a_connection_that_the_api_closed_meanwhile_is_opened_again():
    used: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for number, requests in enumerate([2, 1]):
                stream, _ = listener.accept()
                with stream:
                    for _ in range(requests):
                        while not stream.recv(65536).endswith(b"}"):
                            pass
                        used.append(number)
                        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        table = LeanTable(Api(REGION, lambda: KEYS, endpoint_url=url), "clusters", "id", "term")
        assert [table.get("mysql") for _ in range(3)] == [None] * 3
    assert used == [0, 0, 1], "kept open while the API does, and opened again"


@pytest.mark.parametrize("answer", [b"<html>gateway</html>", b"", b"no HTTP at all\r\n"])
def test_what_is_not_aws_is_unreachable(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            # The client asks twice at the most; the listener's end is the end of this too.
            with suppress(OSError):
                for _ in range(2):
                    stream, _ = listener.accept()
                    with stream:
                        stream.recv(65536)
                        head = b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n"
                        stream.sendall((head if answer.startswith(b"<") else b"") + answer)

        threading.Thread(target=serve, daemon=True).start()
        api = Api(
            REGION, lambda: KEYS, endpoint_url=f"http://127.0.0.1:{listener.getsockname()[1]}"
        )
        with pytest.raises(Unreachable, match="does not answer"):
            LeanTable(api, "clusters", "cluster", "lease_term").get("mysql")


def test_an_api_that_says_nothing_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        api = Api(REGION, lambda: KEYS, endpoint_url=url, seconds=0.2)
        with pytest.raises(Unreachable, match="timed out"):
            LeanTable(api, "clusters", "cluster", "lease_term").get("mysql")


def test_parameters_come_by_the_name_that_was_asked_for(api, theirs):
    theirs("ssm").put_parameter(Name="/f/e/mysql/watcher_password", Value="pw", Type="SecureString")
    wanted = {"/f/e/mysql/watcher_password": "flotilla_watcher", "/f/e/mysql/none": "nobody"}
    assert parameters(api, wanted) == {"flotilla_watcher": "pw"}
    assert versioned(api, wanted) == {"flotilla_watcher": ("pw", 1)}
    theirs("ssm").put_parameter(
        Name="/f/e/mysql/watcher_password", Value="new", Type="SecureString", Overwrite=True
    )
    assert versioned(api, wanted) == {"flotilla_watcher": ("new", 2)}


@pytest.fixture
def hosts(theirs):
    """Two database hosts of one fleet and one of another; name to instance id."""
    made = {}
    for fleet, name in [("f", "mysql-10"), ("f", "mysql-2"), ("f", "redis-1"), ("g", "mysql-1")]:
        role = name.partition("-")[0]
        tags = {"Fleet": fleet, "Env": "e", "Role": role, "ManagedBy": "flotilla", "Name": name}
        run = theirs("ec2").run_instances(
            ImageId="ami-12c6146b",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": k, "Value": v} for k, v in tags.items()],
                }
            ],
        )
        made[fleet, name] = run["Instances"][0]["InstanceId"]
    return made


def test_the_members_of_a_cluster_are_those_of_its_fleet_by_number(api, hosts):
    places = Peers(api, "f", "e", "mysql").places()
    assert [(place.name, place.instance_id) for place in places] == [
        ("mysql-2", hosts["f", "mysql-2"]),
        ("mysql-10", hosts["f", "mysql-10"]),
    ]
    assert all(place.address and place.zone for place in places)


def test_a_stopped_host_is_seen_to_be_stopped(api, hosts):
    peers, instance = Peers(api, "f", "e", "mysql"), hosts["f", "mysql-2"]
    assert peers.state(instance) == "running"
    peers.stop(instance)
    assert peers.state(instance) == "stopped"
    assert [place.name for place in peers.places()] == ["mysql-2", "mysql-10"], "it may come back"


def test_a_host_that_ec2_forgot_is_gone(api, hosts):
    assert Peers(api, "f", "e", "mysql").state("i-0123456789abcdef0") == "terminated"


def test_what_ec2_refuses_is_told_in_its_words(api):
    with pytest.raises(AnswerError, match="answered InvalidInstanceID") as refused:
        Peers(api, "f", "e", "mysql").stop("i-0123456789abcdef0")
    assert refused.value.code == "InvalidInstanceID.NotFound"


class Metadata(BaseHTTPRequestHandler):
    """IMDSv2 with one role; keys carry the number of times they were asked for."""

    asked = 0
    works = True

    def log_message(self, *_):
        """Say nothing."""

    def do_PUT(self):
        self._say(200, "the-token")

    def do_GET(self):
        folder = "/latest/meta-data/iam/security-credentials/"
        if not self.works or self.headers.get("X-aws-ec2-metadata-token") != "the-token":
            self._say(500, "")
        elif self.path == folder:
            self._say(200, "f-e-mysql\n")
        elif self.path == folder + "f-e-mysql":
            type(self).asked += 1
            keys = {"AccessKeyId": f"A{self.asked}", "SecretAccessKey": "s", "Token": "t"}
            self._say(200, json.dumps(keys | {"Expiration": "1970-01-01T00:16:40Z"}))
        else:
            self._say(404, "")

    def _say(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def metadata():
    handler = type("Handler", (Metadata,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_keys_of_the_role_are_kept_and_renewed_before_they_expire(metadata):
    _, host = metadata
    clock = [0.0]
    role = OwnRole(host, now=lambda: clock[0])
    assert [role().access, role().access] == ["A1", "A1"]
    clock[0] = 701.0
    assert role().access == "A2"


def test_keys_that_still_work_outlive_a_silent_metadata_service(metadata):
    handler, host = metadata
    clock = [0.0]
    role = OwnRole(host, now=lambda: clock[0])
    role()
    handler.works = False
    clock[0] = 999.0
    assert role().access == "A1"
    clock[0] = 1001.0
    with pytest.raises(Unreachable, match="gives no credentials"):
        role()


def test_an_object_is_fetched_once_and_then_only_when_it_is_another(api, theirs):
    s3 = theirs("s3")
    s3.create_bucket(Bucket="lean", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="lean", Key="access/trust.json", Body=b"one")
    etag, body = api.s3_object("lean", "access/trust.json")
    assert body == b"one"
    assert api.s3_object("lean", "access/trust.json", etag) is None
    s3.put_object(Bucket="lean", Key="access/trust.json", Body=b"two")
    assert api.s3_object("lean", "access/trust.json", etag)[1] == b"two"


def test_an_object_that_is_not_there_is_an_answer_and_no_silence(api, theirs):
    theirs("s3").create_bucket(
        Bucket="bare", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    with pytest.raises(AnswerError) as raised:
        api.s3_object("bare", "access/trust.json")
    assert raised.value.code == "404"


def test_a_request_for_an_object_is_signed_as_botocore_does():
    url = "https://s3.eu-central-1.amazonaws.com/shop-blue-artifacts/access/trust.json"
    empty = hashlib.sha256(b"").hexdigest()
    request = AWSRequest("GET", url, headers={"If-None-Match": '"a"'})
    S3SigV4Auth(Credentials(KEYS.access, KEYS.secret, KEYS.token), "s3", REGION).add_auth(request)
    sent = {"If-None-Match": '"a"', "X-Amz-Content-Sha256": empty}
    now = _seconds(request.context["timestamp"])
    ours = signed(url, sent, b"", KEYS, service="s3", region=REGION, now=now, method="GET")
    assert ours["Authorization"] == request.headers["Authorization"]

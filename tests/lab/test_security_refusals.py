"""What the standing fleet refuses, and where that can be read afterwards.

Logins, forwarding and shells by certificate are in tests/sshd, where sshd's own log is read.
"""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from guests import client, control, needs_lab, until
from security.rights import ASKED_FOR

from flotilla import inventory
from flotilla.aws import edge
from flotilla.hosts.ssh import Runner
from flotilla.settings import Settings

pytestmark = needs_lab

METADATA = "http://169.254.169.254/latest/meta-data/"
STATUS = f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' {METADATA}"
# The journal is told every 30 s of packets, every 10 s of clients of MySQL.
TOLD_SECONDS = 60.0
PLAIN = (
    "import socket, sys\n"
    "link = socket.create_connection((sys.argv[1], 6379), 5)\n"
    "try:\n"
    "    link.sendall(b'PING\\r\\n')\n"
    "    print(link.recv(64))\n"
    "except ConnectionResetError:\n"
    "    print(b'')\n"
)
PLAIN_MYSQL = """
import json, pymysql
try:
    pymysql.connect(**json.loads({options!r}), ssl_disabled=True, connect_timeout=5)
except pymysql.err.OperationalError as error:
    print(error.args[0])
"""
ASK_SSM = """
import boto3, botocore.exceptions, sys
try:
    print(boto3.client("ssm").get_parameters(Names=sys.argv[1:], WithDecryption=True))
except botocore.exceptions.ClientError as error:
    print(error.response["Error"]["Code"])
"""
SOCKET = (
    "import socket\n"
    "try:\n"
    "    socket.socket(socket.AF_UNIX).connect('/run/haproxy/admin.sock')\n"
    "except PermissionError:\n"
    "    print('refused')\n"
)


def as_nobody(runner: Runner, host: str, program: str) -> str:
    command = "setpriv --reuid nobody --regid nogroup --clear-groups python3 -"
    return runner.run(host, command, sudo=True, stdin=program).stdout.strip()


def told(runner: Runner, host: str, unit: str) -> list[dict[str, Any]]:
    """What a unit told of late, in the order of its journal."""
    command = f"journalctl -u {unit} --since -10min -o cat --no-pager"
    lines = runner.run(host, command, sudo=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def packets(runner: Runner, host: str, refused: str) -> int:
    lines = told(runner, host, "flotilla-firewall-tell")
    return sum(one["packets"] for one in lines if one["refused"] == refused)


def grows(count: Callable[[], int], act: Callable[[], object], why: str) -> None:
    before = count()
    act()
    until(lambda: count() > before, TOLD_SECONDS, why)


def test_metadata_without_a_token_is_told_to_nobody_and_counted_by_ec2(
    standing_fleet: Settings, runner: Runner, names: dict[str, list[str]]
) -> None:
    """No host sees it: who may ask reaches the service, and the refusal is the service's."""

    def rejected(instance_id: str) -> float:
        now = datetime.now(UTC)
        answer = client("cloudwatch").get_metric_statistics(
            Namespace="AWS/EC2",
            MetricName="MetadataNoTokenRejected",
            Dimensions=[{"Name": "InstanceId", "Value": instance_id}],
            StartTime=now - timedelta(hours=12),
            EndTime=now + timedelta(minutes=1),
            Period=86400,
            Statistics=["Sum"],
        )
        return sum(point["Sum"] for point in answer["Datapoints"])

    snapshot = inventory.load(standing_fleet)
    for host, *_ in names.values():
        before = rejected(snapshot.host(host).instance_id)
        assert runner.run(host, STATUS, check=False).stdout == "401", host
        assert rejected(snapshot.host(host).instance_id) == before + 1


def test_accounts_without_rights_reach_no_credentials_and_the_journal_is_told(
    runner: Runner, names: dict[str, list[str]]
) -> None:
    app = names["app"][0]
    command = f"setpriv --reuid nobody --regid nogroup --clear-groups {STATUS}"

    def ask() -> None:
        assert runner.run(app, command, sudo=True, check=False).stdout == "000"

    why = "the journal tells of packets to the metadata service"
    grows(lambda: packets(runner, app, "credentials of the instance"), ask, why)


def test_a_port_that_no_row_opens_is_refused_on_the_way_out_and_the_journal_is_told(
    standing_fleet: Settings, runner: Runner, names: dict[str, list[str]]
) -> None:
    app = names["app"][0]
    address = inventory.load(standing_fleet).host(names["redis"][0]).private_ip
    dial = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/8080'"

    def ask() -> None:
        assert not runner.run(app, dial, check=False).ok

    why = "the journal tells of packets that no row lets out"
    grows(lambda: packets(runner, app, "what no row opens"), ask, why)


def test_the_parameters_of_another_role_are_refused_and_on_record(
    standing_fleet: Settings, runner: Runner, names: dict[str, list[str]]
) -> None:
    role, name = ASKED_FOR
    path = standing_fleet.parameter(*name.split("/"))
    before = len(refusals_of(standing_fleet.name_of(role)))
    command = f"set -a; . /etc/flotilla/aws.env; exec python3 - {path}"
    answer = runner.run(names[role][0], command, sudo=True, stdin=ASK_SSM).stdout.strip()
    assert answer == "AccessDeniedException"
    (line,) = refusals_of(standing_fleet.name_of(role))[before:]
    assert line["resource"].endswith(f":parameter{path}")
    assert line["action"] == "GetParameters"


def refusals_of(role: str) -> list[dict[str, Any]]:
    """What CloudTrail would have: calls of a role that its policies do not permit."""
    log = Path(control("status")["repo"], "var/lab/log/api.jsonl")
    with log.open() as lines:
        found = [json.loads(line) for line in lines if '"AccessDeniedException"' in line]
    return [one for one in found if one["role"] == role]


# The kernel refuses it, and no line is left: see docs/production.md.
@pytest.mark.parametrize("role", ["lb", "app"])
def test_the_socket_of_a_load_balancer_is_for_its_own_account(
    runner: Runner, names: dict[str, list[str]], role: str
) -> None:
    assert as_nobody(runner, names[role][0], SOCKET) == "refused"


def test_redis_answers_nothing_in_plain_text_and_writes_a_line(
    standing_fleet: Settings, runner: Runner, names: dict[str, list[str]]
) -> None:
    snapshot = inventory.load(standing_fleet)
    redis, app = names["redis"][0], names["app"][0]
    address, mine = (snapshot.host(name).private_ip for name in (redis, app))
    search = (
        "journalctl -u redis-server --since -10min -o cat --no-pager"
        f" | grep -c 'Error accepting a client connection: .*addr={mine}:' || true"
    )

    def ask() -> None:
        said = runner.run(app, f"python3 - {address}", stdin=PLAIN).stdout
        assert "PONG" not in said
        assert "NOAUTH" not in said

    why = "Redis writes a line"
    grows(lambda: int(runner.run(redis, search, sudo=True).stdout), ask, why)


def test_mysql_answers_nobody_in_plain_text_and_the_journal_is_told(
    standing_fleet: Settings, runner: Runner, names: dict[str, list[str]]
) -> None:
    snapshot = inventory.load(standing_fleet)
    asked, asking = names["mysql"][:2]
    server, mine = (snapshot.host(name).private_ip for name in (asked, asking))
    name, user = standing_fleet.parameter("mysql", "app_password"), standing_fleet.mysql.user
    found = client("ssm").get_parameter(Name=name, WithDecryption=True)
    password = found["Parameter"]["Value"]
    options = json.dumps({"host": server, "user": user, "password": password})

    def ask() -> None:
        program = PLAIN_MYSQL.format(options=options)
        assert runner.run(asking, "python3 -", stdin=program).stdout.strip() == "3159"

    def lines() -> int:
        wanted = {"refused": "connection without TLS", "account": user, "from": mine}
        found = told(runner, asked, "flotilla-mysql-agent")
        return sum(one["times"] for one in found if wanted.items() <= one.items())

    grows(lines, ask, "the journal tells who was refused")


def test_an_address_that_a_client_makes_up_is_not_believed(
    standing_fleet: Settings, runner: Runner, names: dict[str, list[str]]
) -> None:
    mark = uuid.uuid4().hex
    request = urllib.request.Request(
        f"{edge.url(standing_fleet)}/readyz?{mark}", headers={"X-Forwarded-For": "203.0.113.66"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200

    def line() -> str:
        search = f"journalctl -u haproxy --since -2min -o cat | grep -F {mark} || true"
        return "".join(runner.run(h, search, sudo=True).stdout for h in names["lb"])

    logged = until(line, 10, "the load balancer logs the request")
    assert "198.18." in logged
    assert "203.0.113.66" not in logged

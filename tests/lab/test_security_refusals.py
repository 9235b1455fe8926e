"""What the standing fleet refuses, and where that can be read afterwards.

Logins, forwarding and shells by certificate are in tests/sshd, where sshd's own log is read.
"""

from __future__ import annotations

import re
import urllib.request
import uuid
from collections.abc import Iterator

import pytest
from guests import needs_lab, until

from flotilla import inventory
from flotilla.aws import edge
from flotilla.hosts.ssh import Runner, prepare
from flotilla.settings import Settings

pytestmark = needs_lab

METADATA = "http://169.254.169.254/latest/meta-data/"
STATUS = f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' {METADATA}"
REFUSED = re.compile(r'counter packets (\d+) bytes \d+ .*"credentials of the instance"')
PLAIN = (
    "import socket, sys\n"
    "link = socket.create_connection((sys.argv[1], 6379), 5)\n"
    "try:\n"
    "    link.sendall(b'PING\\r\\n')\n"
    "    print(link.recv(64))\n"
    "except ConnectionResetError:\n"
    "    print(b'')\n"
)
SOCKET = (
    "import socket\n"
    "try:\n"
    "    socket.socket(socket.AF_UNIX).connect('/run/haproxy/admin.sock')\n"
    "except PermissionError:\n"
    "    print('refused')\n"
)


@pytest.fixture(scope="module")
def runner(standing_fleet: Settings) -> Iterator[Runner]:
    snapshot = inventory.load(standing_fleet, refresh=True)
    prepare(standing_fleet, snapshot)
    with Runner(standing_fleet, snapshot) as opened:
        yield opened


def as_nobody(runner: Runner, host: str, program: str) -> str:
    command = "setpriv --reuid nobody --regid nogroup --clear-groups python3 -"
    return runner.run(host, command, sudo=True, stdin=program).stdout.strip()


def test_metadata_without_a_token_is_told_to_nobody(runner: Runner) -> None:
    for host in ("lb-1", "app-1", "mysql-1", "redis-1", "bastion-1"):
        assert runner.run(host, STATUS, check=False).stdout == "401", host


def test_accounts_without_rights_reach_no_credentials_and_are_counted(runner: Runner) -> None:
    def refused() -> int:
        listed = runner.run("app-1", "nft list chain inet flotilla output", sudo=True).stdout
        found = REFUSED.search(listed)
        assert found, listed
        return int(found[1])

    before = refused()
    command = f"setpriv --reuid nobody --regid nogroup --clear-groups {STATUS}"
    assert runner.run("app-1", command, sudo=True, check=False).stdout == "000"
    assert refused() > before


@pytest.mark.parametrize("host", ["lb-1", "app-1"])
def test_the_socket_of_a_load_balancer_is_for_its_own_account(runner: Runner, host: str) -> None:
    assert as_nobody(runner, host, SOCKET) == "refused"


def test_redis_answers_nothing_in_plain_text(standing_fleet: Settings, runner: Runner) -> None:
    address = inventory.load(standing_fleet).host("redis-1").private_ip
    told = runner.run("app-1", f"python3 - {address}", stdin=PLAIN).stdout
    assert "PONG" not in told
    assert "NOAUTH" not in told


def test_an_address_that_a_client_makes_up_is_not_believed(
    standing_fleet: Settings, runner: Runner
) -> None:
    mark = uuid.uuid4().hex
    request = urllib.request.Request(
        f"{edge.url(standing_fleet)}/readyz?{mark}", headers={"X-Forwarded-For": "203.0.113.66"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200

    def line() -> str:
        search = f"journalctl -u haproxy --since -2min -o cat | grep -F {mark} || true"
        return "".join(runner.run(h, search, sudo=True).stdout for h in ("lb-1", "lb-2"))

    logged = until(line, 10, "the load balancer logs the request")
    assert "198.18." in logged
    assert "203.0.113.66" not in logged

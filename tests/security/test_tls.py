"""What every port that speaks TLS offers, judged against Mozilla's profiles.

The servers are those of the newest images with what the roles write: intermediate where browsers
come in, modern on every hop behind that.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from haproxyd import hop
from mysqld.binaries import Binaries, NoImageError
from mysqld.conftest import programs
from mysqld.server import ADMIN_PORT, PORT, Mysqld
from mysqld.trust import OURS, ZONE
from redisd import group as redis
from security import tls
from sshd.machines import Machine
from templates.conftest import REPOSITORY, render_template

from flotilla.wait import until

__all__ = ["programs"]

pytestmark = pytest.mark.timeout(1200)
SHOP = "shop.example"
INTERMEDIATE, MODERN = "intermediate", "modern"
Judge = Callable[..., None]


@pytest.fixture
def judge_tls(scores: dict[str, str], tmp_path: Path) -> Judge:
    """Compare a server with a profile, and note the score."""

    def judged(
        what: str, address: tuple[str, int], profile: str, *,
        root: str, name: str, inside: Sequence[str] = (),
    ) -> None:  # fmt: skip
        path = tmp_path / "root.pem"
        path.write_text(root)
        found = tls.differences(address, profile, path, name=name, inside=inside)
        scores[f"tls {what}"] = tls.score(what, profile, found)
        assert found == tls.ACCEPTED.get(what, [])

    return judged


@contextmanager
def machine(folder: Path, image: str, address: str) -> Iterator[Machine]:
    """A host of a role's image; skipped, with the reason, where there can be none."""
    try:
        made = Machine(f"{image}-1", address, folder / image, None, image)
    except (NoImageError, PermissionError) as error:
        pytest.skip(str(error))
    try:
        conf = made.path("/etc/ssl/openssl.cnf")
        conf.write_text(conf.read_text().partition(HARDENED)[0] + openssl())
        yield made
    finally:
        made.end()


# Where the image has what role hardening adds to OpenSSL's settings.
HARDENED = "# BEGIN ANSIBLE MANAGED BLOCK"


def openssl() -> str:
    """What role hardening adds to them."""
    return render_template("hardening", "openssl.cnf.j2", host="app-1")


@pytest.fixture
def hardened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL's settings of a host, for programs of an image that run on this machine."""
    path = tmp_path / "openssl.cnf"
    path.write_text(f"openssl_conf = openssl_init\n{openssl()}")
    monkeypatch.setenv("OPENSSL_CONF", str(path))


def inside(host: Machine) -> list[str]:
    """The beginning of a command that runs a program of this machine in a host's network."""
    return ["nsenter", "--target", str(host.init), "--net"]


@contextmanager
def serving(host: Machine, port: int, *command: str) -> Iterator[None]:
    """A program of the host, from when it listens until it is ended."""
    log = host.folder / "server.log"
    with log.open("wb") as out:
        # From a folder that is there: HAProxy asks where it is started.
        started = host.argv("sh", "-c", 'cd / && exec "$0" "$@"', *command)
        process = subprocess.Popen(started, stdout=out, stderr=out)
    try:
        probe = f"exec 3<>/dev/tcp/{host.address}/{port}"
        until(
            lambda: not host.run("bash", "-c", probe, check=False).returncode or _ended(process),
            seconds=30,
        )
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(20)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Machine]:
    """A load balancer with a certificate; no server is up, so that it answers by itself."""
    with ExitStack() as stack:
        host = stack.enter_context(machine(tmp_path, "lb", "127.0.70.10"))
        put_edge(host)
        stack.enter_context(serving(host, 443, *HAPROXY))
        yield host


CONFIGURATION = "/etc/haproxy/haproxy.cfg"
HAPROXY = ("/usr/sbin/haproxy", "-W", "-db", "-f", CONFIGURATION)


def put_edge(host: Machine) -> None:
    """What role haproxy puts on a load balancer whose certificate is in fleet.yml."""
    pem = hop.leaf(host.address, zone=SHOP).decode()
    text = render_template(
        *("haproxy", "haproxy.cfg.j2"),
        host="lb-1",
        haproxy_edge_servers={"app-1": "127.0.70.1"},
        haproxy_edge_certificate_path="/etc/haproxy/edge.pem",
        haproxy_edge_peers={},
        haproxy_stats_address=host.address,
    )
    files = yaml.safe_load((REPOSITORY / "roles/haproxy/vars/main.yml").read_text())
    for file in files["__haproxy_baked_files"]:
        page = render_template("haproxy", file["src"], host="lb-1", __haproxy_file=file)
        host.write(file["dest"], page)
    host.write("/etc/haproxy/authority.pem", hop.authority())
    host.write("/etc/haproxy/edge.pem", pem, 0o600)
    for name in ("maintenance", "acme"):
        host.write(f"/etc/haproxy/{name}.map", "")
    host.write(CONFIGURATION, text)
    host.run("mkdir", "-p", "/run/haproxy", "/var/lib/haproxy")


def test_the_edge_is_intermediate(edge: Machine, judge_tls: Judge) -> None:
    where = (edge.address, 443)
    judge_tls("edge", where, INTERMEDIATE, root=hop.authority(), name=SHOP, inside=inside(edge))


def test_the_edge_has_an_a_plus(edge: Machine, scores: dict[str, str], tmp_path: Path) -> None:
    """HSTS is on HAProxy's own replies too: no server is up here."""
    root = tmp_path / "root.pem"
    root.write_text(hop.authority())
    where = (edge.address, 443)
    letter, number, weighty = tls.grade(where, root, tmp_path, name=SHOP, inside=inside(edge))
    scores["testssl.sh edge"] = f"{letter}, {number} of 100, {len(weighty)} findings of weight"
    assert letter == "A+"
    assert weighty == []


def test_an_edge_that_offers_too_much_is_found(tmp_path: Path, judge_tls: Judge) -> None:
    with machine(tmp_path, "lb", "127.0.70.10") as host:
        put_edge(host)
        text = host.path(CONFIGURATION).read_text()
        lines = [line for line in text.splitlines() if "ssl-default-bind" not in line]
        host.write(CONFIGURATION, "\n".join(lines) + "\n")
        conf = host.path("/etc/ssl/openssl.cnf")
        conf.write_text(conf.read_text().replace(openssl(), ""))
        with serving(host, 443, *HAPROXY):
            root = tmp_path / "root.pem"
            root.write_text(hop.authority())
            where = (host.address, 443)
            found = tls.differences(where, INTERMEDIATE, root, name=SHOP, inside=inside(host))
    assert {one.partition(":")[0] for one in found} >= {"ciphers", "tls_curves"}


def test_nginx_of_application_hosts_is_modern(tmp_path: Path, judge_tls: Judge) -> None:
    with machine(tmp_path, "app", "127.0.70.1") as host:
        host.write("/etc/flotilla/tls/leaf.pem", hop.leaf(host.address))
        host.write("/etc/nginx/nginx.conf", render_template("nginx", "nginx.conf.j2", host="app-1"))
        with serving(host, 443, "/usr/sbin/nginx", "-g", "daemon off;"):
            where = (host.address, 443)
            judge_tls(
                "nginx", where, MODERN, root=hop.authority(), name=hop.ZONE, inside=inside(host)
            )


def test_mysql_is_modern(
    tmp_path: Path, programs: Binaries, hardened: None, judge_tls: Judge
) -> None:
    """On both ports."""
    server = Mysqld(programs, tmp_path / "mysql-1", "mysql-1", 1, "127.80.9.1")
    server.initialize()
    server.start()
    try:
        server.ready()
        session = server.session()
        # Whose host has no account is refused before TLS.
        session.batch(["SET GLOBAL super_read_only = OFF", "CREATE USER app IDENTIFIED BY 'app'"])
        session.close()
        for what, port in (("mysql", PORT), ("mysql admin", ADMIN_PORT)):

            def dial(port: int = port) -> tls.Stream:
                return socket.create_connection((server.address, port), 10)

            with tls.front(dial, mysql=True) as where:
                judge_tls(what, where, MODERN, root=OURS.root.public(), name=ZONE)
    finally:
        server.stop()


def test_redis_and_sentinel_are_modern(tmp_path: Path, hardened: None, judge_tls: Judge) -> None:
    try:
        with redis.running(tmp_path) as group:
            root = group.authority.root.public()
            for what, port in (("redis", redis.PORT), ("sentinel", redis.SENTINEL_PORT)):
                judge_tls(what, (redis.HOSTS["redis-1"], port), MODERN, root=root, name=redis.ZONE)
    except NoImageError as error:
        pytest.skip(str(error))

"""Reloads and a new certificate under clients that keep their connections: nobody notices."""

from __future__ import annotations

import multiprocessing
import shlex
import subprocess
import time

import pytest
import yaml
from haproxyd.certificates import certificate
from haproxyd.clients import clients
from haproxyd.edge import ROLE, Edge, running

from flotilla.rules import lb_certificate

OLD, NEW = 1001, 1002
RELOADS = 10


def test_haproxy_says_which_certificate_it_has_and_when_it_ends(tmp_path) -> None:
    with running(tmp_path, pem=certificate(OLD, days=20.0)) as edge:
        runtime = edge.runtime()
        (found,) = runtime.certificates()
        assert int(found.serial, 16) == OLD
        assert found.file == str(edge.pem)
        left = lb_certificate.days_left([found], time.time())
        assert left == pytest.approx(20.0, abs=0.01)
        edge.pem.write_text(certificate(NEW))
        assert runtime.certificates() == (found,), "the file is not what clients get"
        edge.reload()
        assert [int(one.serial, 16) for one in runtime.certificates()] == [NEW]


def test_without_a_certificate_haproxy_names_none(edge: Edge) -> None:
    assert edge.runtime().certificates() == ()


def test_ten_reloads_and_a_new_certificate_fail_no_request(tmp_path) -> None:
    with running(tmp_path, pem=certificate(OLD)) as edge, clients(edge) as seen:
        time.sleep(2)  # of traffic that no reload disturbs
        for number in range(RELOADS):
            if number == RELOADS // 2:
                edge.pem.write_text(certificate(NEW))
            edge.reload()
            time.sleep(1)
        time.sleep(2)  # of traffic after the last one
    for kind, found in seen.items():
        assert found.failed == 0, f"{kind}: {found}"
        assert found.served > 200, f"{kind}: {found}"
        assert set(found.certificates) == {OLD, NEW}, f"{kind}: {found}"


def test_reloads_at_once_bring_no_server_back_that_was_taken_out(tmp_path) -> None:
    """systemd's and flotilla-discovery's know nothing of each other."""
    context = multiprocessing.get_context("fork")
    with running(tmp_path) as edge:
        edge.runtime().set_state("app-1", "state maint", backend="app")
        for _ in range(5):
            runs = [context.Process(target=edge.reload) for _ in range(3)]
            for one in runs:
                one.start()
            for one in runs:
                one.join(60)
            assert edge.runtime().servers("app")["app-1"].status.startswith("MAINT")
            assert [one.exitcode for one in runs] == [0, 0, 0]


def test_the_roles_check_finds_out_a_key_of_another_certificate(tmp_path) -> None:
    mark = "-----BEGIN PRIVATE KEY"
    good, other = certificate(OLD), certificate(NEW)
    mixed = good.partition(mark)[0] + mark + other.partition(mark)[2]
    known = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__haproxy_certificate_check"]
    for pem, is_good in ((good, True), (mixed, False), ("", False), (good[:300], False)):
        file = tmp_path / "new.pem"
        file.write_text(pem)
        argv = shlex.split(known.replace("%s", str(file)))
        done = subprocess.run(argv, capture_output=True, check=False)
        assert (done.returncode == 0) is is_good
        assert b"PRIVATE" not in done.stderr


def test_what_443_begins_with_before_an_order_is_taken_by_haproxy(tmp_path) -> None:
    (task, *_) = yaml.safe_load((ROLE / "tasks/acme_files.yml").read_text())
    command = task["ansible.builtin.shell"]["cmd"].replace(
        "{{ ('/CN=' ~ fleet.domain) | quote }}", "/CN=x"
    )
    file = tmp_path / "first.pem"
    command = command.replace("{{ haproxy_edge_certificate_path | quote }}", str(file))
    assert "{{" not in command
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    assert [one.name for one in tmp_path.iterdir()] == [file.name], "no key is left lying about"
    assert file.stat().st_mode & 0o777 == 0o600
    with running(tmp_path, pem=file.read_text(), haproxy_acme_enabled=True) as edge:
        (found,) = edge.runtime().certificates()
        assert lb_certificate.days_left([found], time.time()) == pytest.approx(3650, abs=1)

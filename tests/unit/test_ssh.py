"""SSH: host keys from the console, the way through the bastion, deadlines, and honest errors."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fabric
import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramiko.common import cMSG_CHANNEL_CLOSE, cMSG_CHANNEL_DATA, cMSG_CHANNEL_EOF
from ssh_server import SshServer

from flotilla import config
from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts import access, keys, known_hosts, ssh
from flotilla.hosts.ssh import Result, Results, Runner
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.wait import DeadlineError, until

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJCEAyMlLDkLy9CyhqmRZzDhWkSw6RWtCrXmDnqpd26m"
RSA = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7J8Yb2m3r5v8w9x0y1z2A3B4C5D6E7F8G9H0I"


def block(*lines: str) -> str:
    inside = "\n".join(lines)
    begin, end = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
    return f"{begin}\n{inside}\n{end}\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.load("lab").placed(tmp_path, "digest")


def host(name: str, *, private: str = "10.77.0.9", public: str | None = None) -> Host:
    role, number = name.split("-")
    return Host(
        name=name, instance_id=f"i-{name}", role=role, number=int(number), zone="eu-central-1a",
        state="running", private_ip=private, public_ip=public, image_id="ami-1", type="t3.small",
        launched_at=datetime(2026, 1, 1, tzinfo=UTC), tags={}, asg=None,
    )  # fmt: skip


# -- the console ---------------------------------------------------------------------------------


def test_keys_are_read_from_the_block_of_cloud_init():
    assert known_hosts.parse("boot\n" + block(f"{ED25519} root@ip-10-77-0-9") + "login:") == (
        ED25519,
    )


def test_lines_may_carry_the_prefix_of_a_serial_console():
    text = block(f"[   12.3] cloud-init[512]: {ED25519} root@host\r")
    assert known_hosts.parse(text) == (ED25519,)


def test_the_last_block_counts_because_an_image_may_carry_an_older_one():
    other = ED25519.replace("pd26m", "pd26n")
    assert known_hosts.parse(block(ED25519) + block(other)) == (other,)


def test_a_block_still_being_printed_is_no_block():
    assert known_hosts.parse(block(ED25519).rpartition("-----END")[0]) == ()


@pytest.mark.parametrize("broken", ["ssh-ed25519 AAAA", ED25519.replace("ed25519 ", "rsa "), "x y"])
def test_a_key_that_is_not_what_it_says_is_left_out(broken):
    assert known_hosts.parse(block(broken)) == ()


@given(st.text(max_size=300))
def test_no_console_whatever_gives_a_key_without_a_block(text):
    assert known_hosts.parse(text) == ()


# -- the cache of host keys ----------------------------------------------------------------------


def test_a_known_host_is_not_asked_again(settings):
    asked: list[str] = []

    def console(instance: str) -> str:
        asked.append(instance)
        return block(ED25519)

    for _ in range(2):
        found = known_hosts.ensure(settings, [host("app-1")], console, seconds=0)
        assert found == {"i-app-1": (ED25519,)}
    assert asked == ["i-app-1"]


def test_a_new_host_is_waited_for_until_it_prints_its_keys(settings):
    answers = iter(["", "booting", block(ED25519)])
    found = known_hosts.ensure(
        settings, [host("app-1")], lambda _: next(answers), seconds=9, sleep=lambda _: None
    )
    assert found == {"i-app-1": (ED25519,)}


def test_a_host_that_never_prints_is_left_out_after_the_deadline(settings):
    clock = iter([0.0, 5.0, 10.0])
    found = known_hosts.ensure(
        settings, [host("app-1"), host("app-2")],
        lambda instance: block(ED25519) if instance == "i-app-2" else "",
        seconds=9, clock=lambda: next(clock), sleep=lambda _: None,
    )  # fmt: skip
    assert found == {"i-app-2": (ED25519,)}


def test_without_the_api_the_cached_keys_are_used(settings):
    known_hosts.ensure(settings, [host("app-1")], lambda _: block(ED25519), seconds=0)

    def down(_: str) -> str:
        raise Unreachable("down")

    found = known_hosts.ensure(settings, [host("app-1"), host("app-2")], down, seconds=9)
    assert found == {"i-app-1": (ED25519,)}


def test_an_address_that_came_back_with_another_instance_has_other_keys(settings):
    known_hosts.ensure(settings, [host("app-1")], lambda _: block(ED25519), seconds=0)
    again = replace(host("app-1"), instance_id="i-other")
    assert known_hosts.ensure(settings, [again], lambda _: "", seconds=0) == {}


# -- the files for OpenSSH -----------------------------------------------------------------------

FLEET = [
    host("bastion-1", private="10.77.0.4", public="127.77.0.1"),
    host("lb-1", private="10.77.0.5", public="127.77.0.2"),
    host("mysql-1", private="10.77.64.4"),
]


def openssh(settings: Settings, name: str) -> dict[str, str]:
    """What OpenSSH itself makes of the file for one host."""
    path = access.config_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(access.ssh_config(settings, FLEET, sockets=Path("/run/s")))
    shown = subprocess.run(
        ["ssh", "-F", path, "-G", name], capture_output=True, text=True, check=True
    )
    return dict(line.split(" ", 1) for line in shown.stdout.splitlines() if " " in line)


@pytest.mark.parametrize("name", ["mysql-1", "10.77.64.4", "i-mysql-1"])
def test_a_host_is_reached_through_the_bastion_by_any_of_its_names(settings, name):
    seen = openssh(settings, name)
    assert (seen["hostname"], seen["proxyjump"]) == ("10.77.64.4", "bastion-1")
    assert (seen["user"], seen["stricthostkeychecking"]) == ("admin", "true")
    assert seen["userknownhostsfile"] == str(settings.scratch / "known_hosts")
    assert seen["identityfile"] == str(settings.scratch / "keys" / "operator")


def test_the_bastion_is_reached_directly_and_load_balancers_are_not(settings):
    bastion = openssh(settings, "bastion-1")
    assert bastion["hostname"] == "127.77.0.1"
    assert "proxyjump" not in bastion
    assert openssh(settings, "lb-1")["proxyjump"] == "bastion-1"


def test_a_socket_of_a_gone_instance_is_never_used_for_its_successor(settings):
    before = access.ssh_config(settings, FLEET, sockets=Path("/run/s"))
    after = access.ssh_config(
        settings, [*FLEET[:2], replace(FLEET[2], instance_id="i-new")], sockets=Path("/run/s")
    )
    sockets = [re.findall(r"ControlPath (\S+)", text)[2] for text in (before, after)]
    assert sockets[0] != sockets[1]


def test_known_hosts_has_every_name_and_address(settings):
    file = known_hosts.write(settings, FLEET, {"i-bastion-1": [ED25519]})
    assert file.read_text() == f"bastion-1,10.77.0.4,127.77.0.1 {ED25519}\n"


# -- the operator's key --------------------------------------------------------------------------


def test_the_key_is_made_once_and_only_its_owner_can_read_it(settings):
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: keys.ensure(settings), range(8)))
    (path,) = paths
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True
    )
    assert keys.public(settings).split()[:2] == derived.stdout.split()[:2]
    assert sorted(p.name for p in path.parent.iterdir()) == ["operator", "operator.pub"]


def test_a_key_that_cannot_be_made_is_one_sentence_with_the_place(settings):
    settings.scratch.mkdir(parents=True)
    (settings.scratch / "keys").write_text("not a folder")
    with pytest.raises(
        FlotillaError, match=r"could not make the SSH key .*/keys/operator: "
    ) as told:
        keys.ensure(settings)
    assert told.value.next.startswith("df -h ")


def test_a_folder_is_not_a_key(settings):
    settings.path(settings.ssh.key_file).mkdir(parents=True)
    with pytest.raises(Refused, match="is not a file, and should be the SSH key"):
        keys.ensure(settings)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"i-1": 5}', '{"i-1": [5]}', "\x00"])
def test_a_damaged_cache_of_host_keys_gives_no_key_that_is_not_text(settings, content):
    settings.scratch.mkdir(parents=True)
    (settings.scratch / "host_keys.json").write_text(content)
    assert all(
        isinstance(key, str) for theirs in known_hosts.load(settings).values() for key in theirs
    )


def test_the_operators_own_key_is_never_made_for_them(settings, tmp_path):
    own = settings.model_copy(
        update={"ssh": settings.ssh.model_copy(update={"key_file": f"{tmp_path}/home/id"})}
    )
    with pytest.raises(Refused, match=r"no SSH key at .*Next: ssh-keygen -t ed25519 -f"):
        keys.ensure(own)


def test_a_key_that_others_can_read_is_refused(settings):
    keys.ensure(settings).chmod(0o644)
    with pytest.raises(Refused, match="Next: chmod 600"):
        keys.ensure(settings)


@pytest.mark.parametrize("made", ["open", "file", "link", "theirs"])
def test_a_folder_for_sockets_that_others_can_write_to_is_refused(
    settings, tmp_path, monkeypatch, made
):
    """OpenSSH takes a socket that it finds there for a host, and asks it for no key."""
    monkeypatch.setattr(access.tempfile, "gettempdir", lambda: str(tmp_path))
    access.prepare(settings, Snapshot(0.0))
    folder = tmp_path / f"flotilla-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    if made == "open":
        folder.chmod(0o777)
    elif made == "theirs":
        monkeypatch.setattr(access.os, "getuid", lambda: os.geteuid() + 1)
        folder.rename(tmp_path / f"flotilla-{os.geteuid() + 1}")
    else:
        folder.rmdir()
        if made == "file":
            folder.touch(mode=0o600)
        else:
            folder.symlink_to(tmp_path)
    with pytest.raises(Refused, match="not a folder of yours alone"):
        access.prepare(settings, Snapshot(0.0))


# -- running commands ----------------------------------------------------------------------------


class Fleet:
    """A bastion and two hosts behind it, on loopback addresses, with a runner for them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        sudo = folder / "sudo"
        sudo.write_text('#!/bin/sh\nshift\nAS_ROOT=yes exec "$@"\n')
        sudo.chmod(0o755)
        self.settings = settings
        allowed = keys.public(settings)
        self.bastion = SshServer("127.0.0.1", allowed, folder)
        port = self.bastion.port
        self.apps = [SshServer(f"127.0.0.{n}", allowed, folder, port) for n in (2, 3)]
        self.servers = [self.bastion, *self.apps]
        self.hosts = [host("bastion-1", private="127.0.0.1", public="127.0.0.1")]
        self.hosts += [host(f"app-{n}", private=f"127.0.0.{n + 1}") for n in (1, 2)]
        self.know([server.public for server in self.servers])

    def know(self, public: list[str]) -> None:
        known = dict(zip([h.instance_id for h in self.hosts], public, strict=True))
        known_hosts.ensure(
            self.settings, self.hosts, lambda instance: block(known[instance]), seconds=0
        )

    def runner(self, seconds: float = 5) -> Runner:
        snapshot = Snapshot(0.0, tuple(self.hosts))
        port = self.bastion.port
        return Runner(self.settings, snapshot, connect_seconds=seconds, port=port)


@pytest.fixture
def servers(settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    there = Fleet(settings, tmp_path)
    yield there
    for server in there.servers:
        server.stop()


@pytest.fixture
def runner(servers: Fleet) -> Iterator[Runner]:
    with servers.runner() as one:
        yield one


def test_a_command_gives_its_output_and_exit_code(runner):
    result = runner.run("app-1", "cat; echo oops >&2; exit 3", stdin="in", check=False)
    assert (result.host, result.stdout, result.stderr, result.rc) == ("app-1", "in", "oops\n", 3)
    assert not result.ok


def test_large_input_and_output_cross_without_a_deadlock(runner):
    text = "x" * 300_000
    result = runner.run("app-1", "tee /dev/stderr", stdin=text, seconds=20)
    assert (len(result.stdout), len(result.stderr)) == (300_000, 300_000)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the client sends of each channel, with a thread that is slow between making a message
    and sending it: all but paramiko's own, which answers what comes in."""
    kinds = {cMSG_CHANNEL_DATA: "data", cMSG_CHANNEL_EOF: "end", cMSG_CHANNEL_CLOSE: "close"}
    found: list[tuple[str, int]] = []
    send = paramiko.Transport._send_user_message

    def slowly(self: paramiko.Transport, message: paramiko.Message) -> None:
        text = message.asbytes()
        kind = kinds.get(text[:1])
        if kind and not self.server_mode:
            if threading.current_thread() is not self:
                time.sleep(0.2)
            found.append((kind, int.from_bytes(text[1:5], "big")))
        send(self, message)

    monkeypatch.setattr(paramiko.Transport, "_send_user_message", slowly)
    return found


@pytest.mark.parametrize("command", ["true", "exit 3", "head -c 1", "cat", "sleep 9"])
@pytest.mark.parametrize("stdin", ["", "x", "x" * 200_000])
def test_nothing_is_sent_for_a_session_that_was_closed(runner, sent, command, stdin):
    """sshd would end the connection, and on a bastion that is everybody's."""
    with contextlib.suppress(HostFailed):
        runner.run("bastion-1", command, stdin=stdin, seconds=1)
    until(lambda: any(kind == "close" for kind, _ in sent), seconds=5)
    time.sleep(0.3)  # a slow thread's message would be here by now
    assert [kind for kind, _ in sent].index("close") == len(sent) - 1, sent


def test_sudo_is_used_when_asked_for(runner):
    assert runner.run("app-1", "echo $AS_ROOT", sudo=True).stdout == "yes\n"
    assert runner.run("app-1", "echo $AS_ROOT").stdout == "\n"


@pytest.mark.parametrize(
    ("said", "words"),
    [("began\n it broke \n\n", "it broke"), (" \n", "exit 3"), ("", "exit 3")],
)
def test_last_words_are_the_last_line_that_says_anything(said, words):
    assert Result("app-1", "", said, 3, 0.1).last_words == words


def test_a_failing_command_names_host_command_code_and_last_words(runner):
    with pytest.raises(HostFailed) as caught:
        runner.run("app-2", "echo no such file >&2; exit 7")
    assert str(caught.value) == ("app-2: `echo no such file >&2; exit 7` exited 7: no such file.")


def test_a_slow_command_is_ended_on_the_host(runner):
    start = time.monotonic()
    with pytest.raises(HostFailed, match=r"app-1: `sleep 30` was ended after 0.5 s"):
        runner.run("app-1", "sleep 30", seconds=0.5)
    assert time.monotonic() - start < 20


def test_a_bastion_that_hangs_up_as_soon_as_it_answered_is_unreachable(servers, monkeypatch):
    """It restarts its server while it boots: an error of the socket's is no error of ours."""
    opened = fabric.Connection.open

    def hung_up(self: fabric.Connection) -> None:
        opened(self)
        self.transport.sock.close()

    monkeypatch.setattr(fabric.Connection, "open", hung_up)
    with servers.runner() as one, pytest.raises(Unreachable, match="bastion-1"):
        one.run("bastion-1", "true")


def test_a_host_that_stops_answering_is_unreachable_after_the_deadline(
    runner, servers, monkeypatch
):
    runner.run("app-1", "true")
    monkeypatch.setattr(ssh, "GRACE_SECONDS", 0.5)
    servers.apps[0].hang.set()
    with pytest.raises(Unreachable, match=r"app-1: no answer during `true`"):
        runner.run("app-1", "true", seconds=0.5)


def test_thirty_commands_at_once_share_three_connections(runner, servers):
    names = ["bastion-1", "app-1", "app-2"] * 10
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda name: runner.run(name, f"echo {name}").stdout, names))
    assert answers == [f"{name}\n" for name in names]
    assert [server.logins for server in servers.servers] == [1, 1, 1]


def test_a_connection_cut_by_a_reboot_is_made_again(runner, servers):
    runner.run("app-1", "true")
    servers.apps[0].cut()
    assert runner.run("app-1", "echo back").stdout == "back\n"


def test_a_way_that_is_gone_is_closed_without_a_word(runner):
    """paramiko closes it in a thread of its own, where an error is a traceback on the terminal."""
    runner.run("app-1", "true")
    way = runner.connection("app-1").transport.sock
    # As between the end of the bastion's connection and the moment when its thread has noticed.
    runner.connection("bastion-1").transport.sock.shutdown(socket.SHUT_WR)
    way.close()


def test_one_dead_host_does_not_hide_the_others(runner, servers):
    servers.apps[0].stop()
    results = runner.run_on(["app-1", "app-2"], lambda one: f"echo {one.name}")
    assert results.results["app-2"].stdout == "app-2\n"
    assert isinstance(results["app-1"], Unreachable)
    with pytest.raises(Unreachable, match=r"app-1: no answer.*1 of 2 hosts did it"):
        results.raise_errors()


def test_a_dead_bastion_is_named(runner, servers):
    servers.bastion.stop()
    with pytest.raises(Unreachable, match="bastion-1: no answer while connecting"):
        runner.run("app-1", "true")


def test_without_a_bastion_nothing_is_tried(servers):
    servers.hosts = servers.hosts[1:]
    with servers.runner() as runner, pytest.raises(Unreachable, match="no running bastion"):
        runner.run("app-1", "true")


def test_another_host_key_than_the_consoles_is_refused(servers):
    swapped = [servers.bastion.public, servers.apps[1].public, servers.apps[0].public]
    (servers.settings.scratch / "host_keys.json").unlink()
    servers.know(swapped)
    with servers.runner() as runner, pytest.raises(Unreachable) as caught:
        runner.run("app-1", "true")
    assert "app-1: it showed another host key than its console printed" in str(caught.value)
    assert [server.logins for server in servers.apps] == [0, 0]


def test_a_host_whose_key_is_not_known_is_not_connected_to(servers):
    (servers.settings.scratch / "host_keys.json").unlink()
    with servers.runner() as runner, pytest.raises(Unreachable, match="its host key is not known"):
        runner.run("bastion-1", "true")
    assert servers.bastion.logins == 0


def test_a_host_that_refuses_our_key_says_so(runner, servers):
    servers.apps[0].allowed = ""
    with pytest.raises(Unreachable, match="app-1: it refuses the operator's SSH key"):
        runner.run("app-1", "true")


def test_a_file_arrives_whole_with_its_mode(runner, tmp_path):
    target = tmp_path / "it's here"
    runner.put("app-1", b"\x00binary\xff", str(target), mode=0o640)
    assert target.read_bytes() == b"\x00binary\xff"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_stream_is_a_socket_to_a_command(runner):
    with runner.stream("app-1", "cat") as stream:
        stream.settimeout(5)
        stream.sendall(b"ping")
        assert stream.recv(4) == b"ping"


def test_a_failed_host_outranks_a_silent_one():
    both = Results(a=Unreachable("a: silent"), b=HostFailed("b: failed"))
    both["c"] = Result("c", "", "", 0, 0.1)
    with pytest.raises(HostFailed, match=r"a: silent; b: failed.*1 of 3 hosts did it"):
        both.raise_errors()


# -- waiting -------------------------------------------------------------------------------------


def test_waiting_asks_at_least_once_and_once_more_at_the_deadline():
    clock, slept, asked = iter([0.0, 0.0, 1.5, 2.0]), list[float](), list[int]()
    with pytest.raises(DeadlineError, match="not within 2 s"):
        until(lambda: asked.append(1), seconds=2, every=1.5, clock=lambda: next(clock),
              sleep=slept.append)  # fmt: skip
    assert len(asked) == 3
    assert slept == [1.5, 0.5]

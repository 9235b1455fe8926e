"""The packet filter of every role in a real kernel: who gets through is what the table says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from netns.conftest import INSIDE, METADATA, OPERATOR, RESOLVER, ROUTER, STRANGER, VPC, Pair

from flotilla.provision.world import data
from flotilla.rules.firewall import Host, ruleset
from flotilla.rules.reachability import ANYWHERE, groups, rows
from flotilla.settings import ROLES

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {"operator": ("198.18.0.0/24",), "clients": (ANYWHERE,), "internet": (ANYWHERE,)}
GROUPS = groups(rows(data("reachability.yml")), roles=ROLES, outside=OUTSIDE)

# Dials every TCP port from one address: a port that is let through and has no listener answers
# with a reset, one that is filtered says nothing, or that it is forbidden.
SCAN = """
import errno, json, select, socket, sys
source, target, low, high = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
through = []
for start in range(low, high, 4000):
    poll, waiting = select.epoll(), {}
    def answered(sock, error):
        if error in (0, errno.ECONNREFUSED):
            through.append(waiting[sock.fileno()][1])
    for port in range(start, min(start + 4000, high)):
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        error = sock.connect_ex((target, port))
        waiting[sock.fileno()] = (sock, port)
        if error == errno.EINPROGRESS:
            poll.register(sock, select.EPOLLOUT | select.EPOLLERR)
        else:
            answered(sock, error)
    while found := poll.poll(0.5, 4000):
        for number, _ in found:
            sock = waiting[number][0]
            poll.unregister(number)
            answered(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    for sock, _ in waiting.values():
        sock.close()
print(json.dumps(through))
"""

# Listens on some UDP ports, says so, and after a line of input which of them heard something.
HEAR = """
import json, socket, sys
socks = {}
for port in json.loads(sys.argv[2]):
    socks[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    socks[port].bind((sys.argv[1], port))
    socks[port].setblocking(False)
print("ready", flush=True)
sys.stdin.readline()
found = []
for port, sock in socks.items():
    try:
        sock.recv(1)
        found.append(port)
    except BlockingIOError:
        pass
print(json.dumps(found))
"""
SAY = """
import json, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in json.loads(sys.argv[2]):
    try:
        sock.sendto(b"x", (sys.argv[1], port))
    except OSError:
        pass
"""


def text_of(role: str, group=None, users=("root",)) -> str:
    return ruleset(Host(group or GROUPS[role], ROLES, VPC, users))


def tcp(rules, *peers: str) -> set[int]:
    """TCP ports of a group's rules for these peers; a role is any host of the VPC."""
    return {
        r.port for r in rules if r.protocol == "tcp" and (r.peer in peers or r.peer == ANYWHERE)
    }


def scan(side, source: str, target: str, low: int = 1, high: int = 65536) -> set[int]:
    return set(json.loads(side.python(SCAN, source, target, str(low), str(high))))


@pytest.mark.parametrize("role", ROLES)
def test_of_all_tcp_ports_exactly_those_of_the_table_are_open(pair: Pair, role: str):
    pair.host.run("nft", "-f", "-", text=text_of(role))
    group = GROUPS[role]
    assert scan(pair.far, ROUTER, INSIDE) == tcp(group.ingress, *ROLES)
    assert scan(pair.host, INSIDE, ROUTER) == tcp(group.egress, *ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_who_is_outside_gets_what_the_table_gives_him(pair: Pair, role: str):
    pair.host.run("nft", "-f", "-", text=text_of(role))
    ingress, egress = GROUPS[role].ingress, GROUPS[role].egress
    assert scan(pair.far, OPERATOR, INSIDE, 1, 12000) == tcp(ingress, "198.18.0.0/24")
    assert scan(pair.far, STRANGER, INSIDE, 1, 12000) == tcp(ingress)
    assert scan(pair.host, INSIDE, STRANGER, 1, 12000) == tcp(egress)


def test_udp_and_protocols_without_ports_are_as_the_table_says(pair: Pair):
    table = [
        {"from": "lb", "to": "app", "protocol": "udp", "ports": [514, 8125], "why": "x"},
        {"from": "app", "to": "lb", "protocol": "udp", "ports": [443], "why": "x"},
    ]
    group = groups(rows(table), roles=ROLES, outside=OUTSIDE)["app"]
    pair.host.run("nft", "-f", "-", text=text_of("app", group))
    asked = json.dumps([53, 67, 68, 123, 443, 514, 515, 8125, 11211, 33333])
    for hearer, address, sayer, heard in (
        (pair.host, INSIDE, pair.far, {514, 8125}),
        (pair.far, ROUTER, pair.host, {443}),
        (pair.far, RESOLVER, pair.host, {53, 443}),
    ):
        listener = hearer.spawn(HEAR, address, asked)
        assert listener.stdout
        assert listener.stdout.readline() == "ready\n"
        sayer.python(SAY, address, asked)
        out, _ = listener.communicate("\n", timeout=20)
        assert set(json.loads(out)) == heard, address


RAW_HEAR = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(sys.argv[1]))
sock.settimeout(1)
print("ready", flush=True)
try:
    sock.recv(100)
    print("heard", flush=True)
except TimeoutError:
    print("silence", flush=True)
"""
RAW_SAY = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(sys.argv[1]))
try:
    sock.sendto(b"x" * 20, (sys.argv[2], 0))
except OSError:
    pass
"""


@pytest.mark.parametrize(
    ("role", "number", "said"),
    [("lb", "112", "heard"), ("app", "112", "silence"), ("lb", "47", "silence")],
)
def test_vrrp_passes_between_load_balancers_and_nowhere_else(pair: Pair, role, number, said):
    pair.host.run("nft", "-f", "-", text=text_of(role))
    for hearer, sayer, target in ((pair.host, pair.far, INSIDE), (pair.far, pair.host, ROUTER)):
        listener = hearer.spawn(RAW_HEAR, number)
        assert listener.stdout
        assert listener.stdout.readline() == "ready\n"
        sayer.python(RAW_SAY, number, target)
        assert listener.communicate(timeout=20)[0] == f"{said}\n"


DIAL_AS = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
sock = socket.socket()
sock.settimeout(2)
print(sock.connect_ex((sys.argv[2], int(sys.argv[3]))))
"""
ANSWER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
talk, _ = server.accept()
for line in sys.stdin:
    talk.sendall(line.encode())
"""


def test_only_named_accounts_reach_the_metadata_and_all_the_clock(pair: Pair):
    pair.host.run("nft", "-f", "-", text=text_of("app"))
    pair.host.run("nft", "add element inet flotilla metadata_users { 104 }")
    served = [pair.far.spawn(ANSWER, METADATA, port) for port in ("80", "81")]
    try:
        for one in served:
            assert one.stdout
            assert one.stdout.readline() == "ready\n"
        codes = {
            uid: int(pair.host.python(DIAL_AS, uid, METADATA, "80")) for uid in ("0", "104", "33")
        }
    finally:
        for one in served:
            one.kill()
            one.wait()
    assert codes["0"] == codes["104"] == 0
    assert codes["33"] == 113, "no route to host: at once, and not a wait of minutes"


# --- the loader: roles/firewall/files/firewall.py ---------------------------------------------

# The real program with its three paths elsewhere, and with systemd's timers written down.
LOADER = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
spec = importlib.util.spec_from_file_location("firewall", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
sys.modules["firewall"] = tool
spec.loader.exec_module(tool)
folder = Path(sys.argv[2])
tool.WANTED, tool.CONFIRMED, tool.RUN = folder / "wanted", folder / "kept/confirmed", folder / "run"
sys.argv = ["firewall.py", *sys.argv[3:]]
sys.exit(tool.main())
"""


class Loader:
    """The loader on the host, with timers that only note what they were set for."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.side, self.folder = pair.host, folder
        programs = folder / "bin"
        programs.mkdir()
        for name in ("systemd-run", "systemctl"):
            file = programs / name
            file.write_text(f'#!/bin/sh\necho "{name} $*" >>{folder}/timers\n')
            file.chmod(0o755)

    def want(self, text: str) -> None:
        (self.folder / "wanted").write_text(text)

    def __call__(self, *arguments: str, check: bool = True) -> str:
        return self.side.run(
            *("env", f"PATH={self.folder}/bin:{os.environ['PATH']}", sys.executable, "-c", LOADER),
            *(str(ROOT / "roles/firewall/files/firewall.py"), str(self.folder), *arguments),
            check=check,
        ).strip()

    def timers(self) -> str:
        return (self.folder / "timers").read_text()


@pytest.fixture
def loader(pair: Pair, tmp_path: Path) -> Loader:
    return Loader(pair, tmp_path)


def tables(pair: Pair) -> set[str]:
    return set(pair.host.run("nft", "list", "tables").splitlines())


def test_rules_that_nobody_confirms_go_again(pair: Pair, loader: Loader):
    pair.host.run("nft", "add table inet lab_sg")
    loader.want(text_of("mysql"))
    assert loader("try", "--seconds", "30") == "on trial for 30 s"
    assert "--on-active=30" in loader.timers()
    assert "firewall.py revert\n" in loader.timers()
    assert "table inet flotilla" in tables(pair)
    assert "no filter" in loader("revert")
    assert tables(pair) == {"table inet lab_sg"}, "the tables of others stay"


def test_confirmed_rules_come_back_after_a_bad_trial_and_at_boot(pair: Pair, loader: Loader):
    loader.want(text_of("mysql"))
    loader("try", "--seconds", "30")
    assert loader("confirm") == "confirmed"
    assert loader("try", "--seconds", "30") == "unchanged"
    assert loader("confirm") == "unchanged"
    loader.want(text_of("app"))
    assert loader("try", "--seconds", "30").startswith("on trial")
    assert scan(pair.far, ROUTER, INSIDE, 1, 4000) == {22, 80, 443}
    loader("revert")
    assert scan(pair.far, ROUTER, INSIDE, 1, 4000) == {22, 3306, 3380}
    loader("off")
    assert loader("load") == "loaded"
    assert scan(pair.far, ROUTER, INSIDE, 1, 4000) == {22, 3306, 3380}


def test_who_confirms_too_late_is_told(pair: Pair, loader: Loader):
    loader.want(text_of("app"))
    loader("try", "--seconds", "1")
    loader("revert")
    assert not loader("confirm", check=False)
    assert not json.loads(loader("status"))["in_force"]


def test_what_the_kernel_refuses_changes_nothing(pair: Pair, loader: Loader):
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    loader("confirm")
    before = pair.host.run("nft", "list", "ruleset")
    loader.want(text_of("app").replace("tcp dport", "tcp deport", 1))
    assert not loader("try", "--seconds", "30", check=False)
    assert pair.host.run("nft", "list", "ruleset") == before


TALK = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
print("ready", flush=True)
for line in sock.makefile():
    print(line, end="", flush=True)
"""


@pytest.mark.parametrize("first", [True, False], ids=["first load", "reload"])
def test_a_long_connection_outlives_the_loading_of_rules(pair: Pair, loader: Loader, first: bool):
    """Also one from before there was any filter, on which only the server ever speaks."""
    if not first:
        loader.want(text_of("mysql"))
        loader("try", "--seconds", "30")
        loader("confirm")
    server = pair.host.spawn(ANSWER, INSIDE, "3306")
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    client = pair.far.spawn(TALK, INSIDE, "3306")
    try:
        assert client.stdout
        assert client.stdout.readline() == "ready\n"
        # The port is closed from now on; what is open stays open.
        table = [row for row in data("reachability.yml") if 3306 not in row.get("ports", [])]
        group = groups(rows(table), roles=ROLES, outside=OUTSIDE)["mysql"]
        loader.want(text_of("mysql", group))
        loader("try", "--seconds", "30")
        assert server.stdin
        for word in ("on trial\n", "confirmed\n", "settled\n"):
            server.stdin.write(word)
            server.stdin.flush()
            assert client.stdout.readline() == word
            loader({"on trial\n": "confirm"}.get(word, "load"))
        assert 3306 not in scan(pair.far, ROUTER, INSIDE, 3300, 3310)
    finally:
        for process in (server, client):
            process.kill()
            process.wait()


def test_a_packet_in_the_middle_of_no_connection_opens_nothing(pair: Pair, loader: Loader):
    """What picks old connections up is gone when the first load has settled."""
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    loader("confirm")
    assert "older than this table" in pair.host.run("nft", "list", "table", "inet", "flotilla")
    assert "firewall.py load\n" in loader.timers()
    loader("load")
    assert "older than" not in pair.host.run("nft", "list", "table", "inet", "flotilla")


def test_accounts_that_the_host_has_are_looked_up(pair: Pair, loader: Loader):
    loader.want(text_of("app", users=("root", "www-data", "nobody-has-this-one")))
    loader("try", "--seconds", "30")
    listed = pair.host.run("nft", "-j", "list", "set", "inet", "flotilla", "metadata_users")
    found = next(one["set"] for one in json.loads(listed)["nftables"] if "set" in one)
    assert found["elem"] == [0, 33]


# LOADER, killed before the n-th of what it does to files and with other programs.
KILLED = """
import os, signal, sys
left, deeds = [int(sys.argv.pop(1))], {"open", "os.rename", "os.remove", "subprocess.Popen"}
def hook(event, details):
    is_reading = event == "open" and not (details[2] or 0) & (os.O_WRONLY | os.O_RDWR)
    if event in deeds and not is_reading and sys.argv[0] == "firewall.py":
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


def opened(pair: Pair) -> set[int]:
    """By the rules in force: MySQL's port, the app's or none."""
    text = pair.host.run("nft", "list", "chain", "inet", "flotilla", "input", check=False)
    return {port for port in (3306, 80) if re.search(rf"\b{port}\b(?! bytes)", text)}


def killed(loader: Loader, deed: int, *words: str) -> bool:
    """Run it with a SIGKILL before its ``deed``-th deed; False when it has fewer than that."""
    path = f"PATH={loader.folder}/bin:{os.environ['PATH']}"
    program = [sys.executable, "-c", KILLED + LOADER, str(deed)]
    tool = [str(ROOT / "roles/firewall/files/firewall.py"), str(loader.folder)]
    argv = loader.side.argv("env", path, *program, *tool, *words)
    return bool(subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode)


def waiting(loader: Loader) -> dict[str, str]:
    """The timers that are set, by unit, and what each does."""
    found = {}
    for line in loader.timers().splitlines():
        if line.startswith("systemctl stop "):
            found.pop(line.split()[2].removesuffix(".timer"), None)
        elif unit := re.search(r"--unit=(\S+)", line):
            found[unit[1]] = line.split()[-1]
    return found


def confirmed(loader: Loader, role: str) -> None:
    loader.want(text_of(role))
    loader("try", "--seconds", "30")
    loader("confirm")
    loader("load")


@pytest.mark.parametrize("first", [True, False], ids=["no rules before", "rules before"])
def test_a_trial_that_is_killed_at_any_step_ends_as_it_began(
    pair: Pair, loader: Loader, first: bool
):
    if not first:
        confirmed(loader, "mysql")
    before = opened(pair)
    loader.want(text_of("app"))
    deed = 0
    while killed(loader, (deed := deed + 1), "try", "--seconds", "30"):
        if opened(pair) != before:
            assert waiting(loader)["flotilla-firewall-revert"] == "revert", deed
            loader("revert")
        assert opened(pair) == before, deed
    assert deed > 5
    assert opened(pair) == {80}


def test_what_is_let_in_for_a_while_ends_also_when_the_next_trial_is_killed(
    pair: Pair, loader: Loader
):
    deed, is_going = 0, True
    while is_going:
        loader("off")
        loader.want(text_of("mysql"))
        loader("try", "--seconds", "30")
        loader("confirm")
        assert "older than" in pair.host.run("nft", "list", "ruleset")
        loader.want(text_of("app"))
        is_going = killed(loader, (deed := deed + 1), "try", "--seconds", "30")
        for verb in waiting(loader).values():
            loader(verb)
        (loader.folder / "timers").unlink()
        assert "older than" not in pair.host.run("nft", "list", "ruleset"), deed
        assert opened(pair) == {3306}, deed
    assert deed > 5


def test_a_revert_that_is_killed_is_done_by_the_next(pair: Pair, loader: Loader):
    confirmed(loader, "mysql")
    loader.want(text_of("app"))
    deed, is_going = 0, True
    while is_going:
        loader("try", "--seconds", "30")
        is_going = killed(loader, (deed := deed + 1), "revert")
        loader("revert")
        assert opened(pair) == {3306}, deed
    assert deed > 3
    assert "--property=Restart=on-failure" in loader.timers()


def test_a_confirmation_that_is_killed_leaves_what_boot_loads(pair: Pair, loader: Loader):
    deed, is_going = 0, True
    while is_going:
        confirmed(loader, "mysql")
        loader.want(text_of("app"))
        loader("try", "--seconds", "30")
        is_going = killed(loader, (deed := deed + 1), "confirm")
        loader("revert")
        now = opened(pair)
        loader("load")
        assert opened(pair) == now, deed
    assert now == {80}


def unwritable(loader: Loader, *names: str) -> None:
    """What a full disk does, also to root: nothing can be written where a folder is."""
    for name in names:
        (loader.folder / name).mkdir(parents=True)


def test_a_full_disk_keeps_nobody_out(pair: Pair, loader: Loader):
    confirmed(loader, "mysql")
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    unwritable(loader, "run/state.new", "run/told.new")
    loader("revert")
    assert opened(pair) == {3306}
    assert not loader("try", "--seconds", "30", check=False)
    assert opened(pair) == {3306}, "a trial that cannot be remembered is none"


def test_what_could_not_be_confirmed_is_taken_back(pair: Pair, loader: Loader):
    confirmed(loader, "mysql")
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    unwritable(loader, "kept/confirmed.new")
    timers = loader.timers()
    assert not loader("confirm", check=False)
    assert loader.timers() == timers, "the way back was taken away"
    loader("revert")
    assert opened(pair) == {3306}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run/state.json", ""),
        ("run/state.json", '{"loaded": '),
        ("run/state.json", '{"foreign": 1}'),
        ("run/told.json", "garbage"),
        ("run/told.json", '{"table": 1}'),
        ("run/told.json", '{"table": 0, "counts": null, "owed": null, "since": null}'),
    ],
)
def test_a_damaged_memory_keeps_nobody_out(pair: Pair, loader: Loader, name: str, text: str):
    confirmed(loader, "mysql")
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    (loader.folder / name).write_text(text)
    if name == "run/state.json":
        assert not loader("confirm", check=False), "nobody knows what was proved"
    loader("revert")
    assert opened(pair) == {3306}


@pytest.mark.parametrize("text", ["", "no rules at all\n"])
def test_confirmed_rules_that_are_lost_leave_no_filter(pair: Pair, loader: Loader, text: str):
    confirmed(loader, "mysql")
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    (loader.folder / "kept/confirmed").write_text(text)
    assert "no filter" in loader("revert")
    assert tables(pair) == set()


@pytest.mark.parametrize("seconds", ["0", "-1", "3601", "99999999999999999999"])
def test_a_trial_is_neither_nothing_nor_for_good(pair: Pair, loader: Loader, seconds: str):
    loader.want(text_of("app"))
    assert not loader("try", f"--seconds={seconds}", check=False)
    assert tables(pair) == set()


def test_a_second_trial_without_a_timer_ends_the_first(pair: Pair, loader: Loader):
    confirmed(loader, "mysql")
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    (loader.folder / "bin/systemd-run").write_text("#!/bin/sh\nexit 1\n")
    assert not loader("try", "--seconds", "30", check=False)
    assert opened(pair) == {3306}


# --- what it refused, told to the journal: roles/firewall/files/firewall_tell.py ---------------

TELLER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("firewall_tell", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
tool.tell(sys.argv[2])
"""


def told(loader: Loader) -> dict[str, int]:
    """What is told now: packets by rule."""
    program = str(ROOT / "roles/firewall/files/firewall_tell.py")
    out = loader.side.python(TELLER, program, str(loader.folder / "run"))
    assert all(line.startswith("<4>{") for line in out.splitlines())
    lines = [json.loads(line.removeprefix("<4>")) for line in out.splitlines()]
    return {f"{one['chain']}: {one['refused']}": one["packets"] for one in lines}


CLOSED, SECRET = "what no row opens", "output: credentials of the instance"


def test_each_refused_packet_is_told_once_also_over_reloads(pair: Pair, loader: Loader):
    loader.want(text_of("app"))
    loader("try", "--seconds", "30")
    loader("confirm")
    assert told(loader) == {}, "nothing was refused yet"
    scan(pair.far, ROUTER, INSIDE, 5000, 5003)
    pair.host.python(DIAL_AS, "33", METADATA, "80")
    first = told(loader)
    assert first[f"input: {CLOSED}"] >= 3
    assert first[SECRET] >= 1
    assert told(loader) == {}
    pair.host.python(DIAL_AS, "33", METADATA, "80")
    for verb in ("load", "off", "load"):
        loader(verb)
    again = told(loader)
    assert set(again) == {SECRET}, "what a reload set back was told a second time, or lost"
    assert again[SECRET] == first[SECRET]
    pair.host.run("nft", "reset", "rules", "table", "inet", "flotilla", check=False)
    assert told(loader) == {}
    loader("off")
    assert told(loader) == {}


@pytest.mark.parametrize("role", ROLES)
def test_every_rule_that_refuses_is_counted_and_has_a_name(pair: Pair, loader: Loader, role: str):
    loader.want(text_of(role))
    loader("try", "--seconds", "30")
    told(loader)
    counts = json.loads((loader.folder / "run/told.json").read_text())["counts"]
    assert counts == {f"input: {CLOSED}": 0, f"output: {CLOSED}": 0, SECRET: 0}

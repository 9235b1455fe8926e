#!/usr/bin/python3
"""Reload, stop and start HAProxy without forgetting which servers are drained or in maintenance.

A plain reload or start brings every server UP at once, also one that a deploy has just taken out,
and one that nobody has checked yet. So both give the new process a state file: the states of now,
or those saved when HAProxy was last seen. A server that these do not know, under this name and at
this address, starts DOWN and comes up by its own checks. The state file exists only while HAProxy
starts. States saved longer ago than ``--max-age`` are dropped and named in the journal: they would
re-apply a maintenance that is long over.

Exit 0 done; 1 nothing changed, the old process serves on; 2 reloaded, but a server lost its state.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Everything goes through the master: its @1 is the current worker, also right after a reload.
MASTER_SOCKET = "/run/haproxy-master.sock"
SERVER_STATES = "@1 show servers state"
STATE_FILE = Path("/var/lib/haproxy/state")
CONFIGURATION = Path("/etc/haproxy/haproxy.cfg")
# Written when HAProxy is stopped, and by flotilla-discovery while it runs.
SAVED = Path("/var/lib/flotilla/haproxy.states")
# The backend whose servers an operator takes out. Who may be written to is never remembered.
BACKEND = "app"
# Where flotilla-discovery writes servers.
MARK = "# Servers: written by flotilla-discovery"

# Set by an operator, so a reload must keep it: forced maintenance and forced drain. Other bits of
# srv_admin_state follow from configuration or DNS.
FORCED_MAINTENANCE = 0x01
FORCED_DRAIN = 0x08


def forced_states(dump: str) -> dict[str, int]:
    """``backend/server`` to its operator-set bits, from the text of ``show servers state``.

    Raises ValueError when the text is not that dump.
    """
    lines = dump.splitlines()
    header = next((line for line in lines if line.startswith("# be_id")), None)
    if header is None:
        raise ValueError(f"not a server state dump: {dump[:80]!r}")
    names = header.lstrip("# ").split()
    backend, server, state = (names.index(n) for n in ("be_name", "srv_name", "srv_admin_state"))
    states = {}
    for line in lines:
        fields = line.split()
        if len(fields) >= len(names) and not line.startswith("#"):
            bits = int(fields[state]) & (FORCED_MAINTENANCE | FORCED_DRAIN)
            states[f"{fields[backend]}/{fields[server]}"] = bits
    return states


COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
    " srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state"
    " srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl"
    " srv_check_port srv_check_addr srv_agent_addr srv_agent_port"
)
# Down, no check seen (1), checks enabled (6); nothing forced.
UNCHECKED = "1 {backend} {number} {name} {address} 0 0 1 1 0 1 0 0 6 0 0 0 - {port} - {tls} 0 - - 0"


def configured(text: str) -> dict[str, tuple[str, str]]:
    """The servers of BACKEND in a configuration: name to address and port."""
    section = re.search(rf"^backend {BACKEND}\n((?:[ \t].*\n|\n)*)", text, re.MULTILINE)
    found = (
        re.findall(r"^\s+server (\S+) ([\d.]+):(\d+)", section[1], re.MULTILINE) if section else []
    )
    return {name: (address, port) for name, address, port in found}


def encrypted(text: str) -> bool:
    """Whether the servers of BACKEND in a configuration are reached by TLS."""
    section = re.search(rf"^backend {BACKEND}\n((?:[ \t].*\n|\n)*)", text, re.MULTILINE)
    return bool(section and re.search(r"^\s+default-server .*\bssl\b", section[1], re.MULTILINE))


def plain(dump: str) -> list[str]:
    """Servers of BACKEND that a process reaches without TLS: address, then "up" or "down"."""
    lines = dump.splitlines()
    header = next((line for line in lines if line.startswith("# be_id")), "").lstrip("# ").split()
    rows = (dict(zip(header, line.split(), strict=False)) for line in lines)
    return sorted(
        f"{row['srv_addr']} {'down' if row['srv_op_state'] == '0' else 'up'}"
        for row in rows
        if row.get("be_name") == BACKEND and row.get("srv_use_ssl") == "0"
    )


def starting(dump: str, servers: dict[str, tuple[str, str]], *, tls: bool = False) -> str:
    """The state file for a process that is to have ``servers``: what ``dump`` says of each, and
    DOWN where it says nothing of one with this name and address.

    HAProxy believes a state file before its configuration, also about ports and TLS: a file from
    before the move would have requests sent in plain, so both are written as configured.
    Other backends keep what the dump says. "" stands for no dump; a line that is cut off counts as
    none.
    """
    lines = dump.splitlines() or ["1", f"# {COLUMNS}"]
    header = next((line for line in lines if line.startswith("# be_id")), "").lstrip("# ").split()
    if not header:
        raise ValueError(f"not a server state dump: {dump[:80]!r}")
    lines = [line for line in lines if not 1 < len(line.split()) < len(header)]
    rows = [dict(zip(header, line.split(), strict=False)) for line in lines]
    known = {
        row["srv_name"]
        for row in rows
        if row.get("be_name") == BACKEND
        and servers.get(row["srv_name"], ("", ""))[0] == row["srv_addr"]
    }
    kept = [
        _as_configured(line, row, servers, tls=tls) if row.get("be_name") == BACKEND else line
        for line, row in zip(lines, rows, strict=True)
        if row.get("be_name") != BACKEND or row["srv_name"] in known
    ]
    fresh = [
        UNCHECKED.format(
            backend=BACKEND, number=number, name=name, address=address, port=port, tls=int(tls)
        )
        for number, (name, (address, port)) in enumerate(servers.items(), 1)
        if name not in known
    ]
    return "\n".join(line for line in [*kept, *fresh] if line.strip()) + "\n"


def _as_configured(
    line: str, row: dict[str, str], servers: dict[str, tuple[str, str]], *, tls: bool
) -> str:
    words = line.split()
    columns = list(row)
    words[columns.index("srv_port")] = servers[row["srv_name"]][1]
    # HAProxy before 2.4 has no such column.
    if "srv_use_ssl" in columns:
        words[columns.index("srv_use_ssl")] = str(int(tls))
    return " ".join(words)


def only_backend(dump: str) -> str:
    """A dump without the servers of other backends: a role that was lost meanwhile must be asked
    for, not remembered.
    """
    lines = dump.splitlines()
    return "\n".join(
        line for line in lines if len(line.split()) < 2 or line.split()[1] in {BACKEND, "be_id"}
    )


def forgotten(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Servers that are still configured and no longer in the state an operator gave them."""
    return sorted(name for name, bits in before.items() if name in after and after[name] != bits)


def workers(processes: str, section: str) -> list[str]:
    """Process ids of the "workers" or the "old workers" in the master's ``show proc``."""
    here, found = "", []
    for line in processes.splitlines():
        if line.startswith("#"):
            here = line.strip("# ")
        elif here == section and line.split()[1:2] == ["worker"]:
            found.append(line.split()[0])
    return found


def old_workers(processes: str) -> int:
    """How many workers of earlier configurations still run, from the master's ``show proc``."""
    return len(workers(processes, "old workers"))


def ask(command: str, *, timeout: float = 5) -> str:
    """What the master, or with ``@1`` the current worker, answers. Raises OSError, TimeoutError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(MASTER_SOCKET)
        connection.sendall(command.encode() + b"\n")
        # Unlike a worker, the master keeps the connection open for more until it hears of the end.
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer.decode(errors="replace")


def save(dump: str, path: Path) -> None:
    """Put the dump where the new process looks for it, whole or not at all."""
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        file.write(dump)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def wait_for_old_workers(seconds: float) -> int:
    """Old workers left after at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while (left := old_workers(ask("show proc"))) and (time.monotonic() < deadline):
        time.sleep(0.2)
    return left


def replaced(before: list[str], *, seconds: float = 20) -> bool:
    """Whether other workers than ``before`` are the current ones, soon enough."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
        # The master's socket is gone while it starts itself anew.
        with contextlib.suppress(OSError):
            now = workers(ask("show proc"), "workers")
            if now and not set(now) & set(before):
                return True
    return False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One reload at a time: systemd's, and flotilla-discovery's. The first to end would take the
    state file away from the other, whose process would then bring every server UP.
    """
    with STATE_FILE.with_name(f".{STATE_FILE.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def reload(wait_seconds: float) -> int:
    """Reload and say how it went on stderr; the exit code."""
    with alone():
        code = _reload()
    if code == 1:
        return code
    try:
        if left := wait_for_old_workers(wait_seconds):
            sys.stderr.write(f"haproxy: {left} old process(es) still finish their connections\n")
    except OSError as error:
        sys.stderr.write(f"haproxy: reloaded; what old processes do is not known: {error}\n")
    return code


def _reload() -> int:
    before_dump = ask(SERVER_STATES)
    before = forced_states(before_dump)
    text = CONFIGURATION.read_text()
    save(starting(before_dump, configured(text), tls=encrypted(text)), STATE_FILE)
    try:
        # The master checks the configuration itself and keeps the old worker when it is bad.
        current = workers(ask("show proc"), "workers")
        answer = ask("reload", timeout=30)
        # Before 2.7 it answers nothing: then a new worker is the answer.
        if "Success=1" not in answer and (answer.strip() or not replaced(current)):
            sys.stderr.write(
                f"haproxy: reload refused, the old configuration serves on:\n{answer}\n"
            )
            return 1
        try:
            after = forced_states(ask(SERVER_STATES))
        except (OSError, ValueError) as error:
            sys.stderr.write(f"haproxy: reloaded; who is out of rotation is not known: {error}\n")
            return 2
    finally:
        with contextlib.suppress(FileNotFoundError):
            STATE_FILE.unlink()
    lost = forgotten(before, after)
    if lost:
        sys.stderr.write(f"haproxy: the reload changed the drain state of {', '.join(lost)}\n")
        return 2
    return 0


def stopping() -> int:
    """Save the states for the next start. A stop is never held up by that."""
    try:
        dump = ask(SERVER_STATES)
        forced_states(dump)
        SAVED.parent.mkdir(parents=True, exist_ok=True)
        save(dump, SAVED)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"haproxy: stopped without saving the servers' states: {error}\n")
    return 0


def prepare(max_age_seconds: float) -> int:
    """Write the state file for a start. A start is never held up by that either."""
    dump = ""
    try:
        age = time.time() - SAVED.stat().st_mtime
        saved = only_backend(SAVED.read_text())
        states = forced_states(saved)
        if 0 <= age <= max_age_seconds:
            dump = saved
        elif out := sorted(name for name, bits in states.items() if bits):
            sys.stderr.write(
                f"haproxy: the states saved {age:.0f} s ago are too old to hold; "
                f"no longer taken out of rotation: {', '.join(out)}\n"
            )
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        sys.stderr.write(f"haproxy: the saved states cannot be used: {error}\n")
    try:
        text = CONFIGURATION.read_text()
        servers = configured(text)
        if servers:
            save(starting(dump, servers, tls=encrypted(text)), STATE_FILE)
        else:
            STATE_FILE.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"haproxy: starts without the servers' states: {error}\n")
    return 0


def followed() -> int:
    """Print the servers, name to address, of a configuration that flotilla-discovery can write to;
    nothing for another one.
    """
    text = CONFIGURATION.read_text()
    if MARK in text:
        servers = {name: address for name, (address, _) in configured(text).items()}
        sys.stdout.write(json.dumps(servers) + "\n")
    return 0


def without_tls(wait_seconds: float) -> int:
    """Print the servers that are reached without TLS. With a time to wait, exit 2 while processes
    of an earlier configuration are left after it: nobody can ask those.
    """
    sys.stdout.write("".join(f"{one}\n" for one in plain(ask(SERVER_STATES))))
    return 2 if wait_seconds and wait_for_old_workers(wait_seconds) else 0


def asked(options: argparse.Namespace) -> int:
    """What may fail: a reload, or a look at what runs. Raises OSError, ValueError."""
    if options.started:
        STATE_FILE.unlink(missing_ok=True)
        return 0
    if options.servers:
        return followed()
    if options.plain:
        return without_tls(options.wait)
    return reload(options.wait)


def main() -> int:
    """Parse the command line, and reload or do what a start or stop needs."""
    parser = argparse.ArgumentParser(description="reload HAProxy and keep its servers' states")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for old processes")
    parser.add_argument("--max-age", type=float, default=0, help="of saved states, in seconds")
    moment = parser.add_mutually_exclusive_group()
    moment.add_argument("--start", action="store_true", help="write the state file for a start")
    moment.add_argument("--started", action="store_true", help="remove it")
    moment.add_argument("--stop", action="store_true", help="save the states for the next start")
    moment.add_argument("--servers", action="store_true", help="print those followed, as JSON")
    moment.add_argument("--plain", action="store_true", help="print those reached without TLS")
    options = parser.parse_args()
    if options.start:
        return prepare(options.max_age)
    if options.stop:
        return stopping()
    try:
        return asked(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"haproxy: not reloaded, the old configuration serves on: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3
"""Reload HAProxy without forgetting which servers are drained or in maintenance.

A plain reload brings every server back UP, also one that a deploy has just taken out. So: write
``show servers state`` where the new process reads it, reload through the master, compare. The state
file exists only while this runs: an old one would re-apply a maintenance that is long over.

Exit 0 done; 1 nothing changed, the old process serves on; 2 reloaded, but a server lost its state.
"""

import argparse
import contextlib
import os
import socket
import sys
import time
from pathlib import Path

# Everything goes through the master: its @1 is the current worker, also right after a reload.
MASTER_SOCKET = "/run/haproxy-master.sock"
SERVER_STATES = "@1 show servers state"
STATE_FILE = Path("/var/lib/haproxy/state")

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


def forgotten(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Servers that are still configured and no longer in the state an operator gave them."""
    return sorted(name for name, bits in before.items() if name in after and after[name] != bits)


def old_workers(processes: str) -> int:
    """How many workers of earlier configurations still run, from the master's ``show proc``."""
    section, count = "", 0
    for line in processes.splitlines():
        if line.startswith("#"):
            section = line.strip("# ")
        elif section == "old workers" and line.split()[1:2] == ["worker"]:
            count += 1
    return count


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


def reload(wait_seconds: float) -> int:
    """Reload and say how it went on stderr; the exit code."""
    before_dump = ask(SERVER_STATES)
    before = forced_states(before_dump)
    save(before_dump, STATE_FILE)
    try:
        # The master checks the configuration itself and keeps the old worker when it is bad.
        answer = ask("reload", timeout=30)
        if "Success=1" not in answer:
            sys.stderr.write(
                f"haproxy: reload refused, the old configuration serves on:\n{answer}\n"
            )
            return 1
        after = forced_states(ask(SERVER_STATES))
    finally:
        with contextlib.suppress(FileNotFoundError):
            STATE_FILE.unlink()
    left = wait_for_old_workers(wait_seconds)
    if left:
        sys.stderr.write(f"haproxy: {left} old process(es) still finish their connections\n")
    lost = forgotten(before, after)
    if lost:
        sys.stderr.write(f"haproxy: the reload changed the drain state of {', '.join(lost)}\n")
        return 2
    return 0


def main() -> int:
    """Parse the command line and reload."""
    parser = argparse.ArgumentParser(description="reload HAProxy and keep its servers' states")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for old processes")
    try:
        return reload(parser.parse_args().wait)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"haproxy: not reloaded, the old configuration serves on: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

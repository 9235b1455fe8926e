"""Runs on a host, as root, sent there through SSH: says how the host is, as one JSON object.

Only Python's standard library, of any version since 3.11; nothing is installed. Its one argument is
a JSON object: ``units`` and ``disks`` (paths) to look at, and which of ``haproxy`` (socket path),
``questions`` (to that socket, by name), ``app`` (release tool, its ``settings`` file, version_path,
ready_path), ``redis`` (reporter), ``edge`` (state file), ``discovery`` and ``renewal`` (report
files) and ``tls`` (the folder of this host's own certificate) there are. Each part that cannot be
had is ``{"error": why}``; the others are there all the same.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 2.0
# A program's start is the processor's work: all hosts of the lab are asked at once on two cores,
# and Redis' reporter took longer than 2 s there with nothing wrong.
PROGRAM_SECONDS = 4.0


def units(names: list[str]) -> dict[str, str]:
    """systemd's word for each unit: active, activating, failed..."""
    return dict(zip(names, said(["systemctl", "is-active", *names]).split(), strict=True))


def failed_units() -> list[str]:
    """Every unit that failed."""
    lines = said(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def disk(path: str) -> dict[str, Any]:
    """How full a file system is, as a program that is not root finds it."""
    found = os.statvfs(path)
    usable = found.f_blocks - found.f_bfree + found.f_bavail
    return {
        "path": path,
        "used_percent": round(100 * (1 - found.f_bavail / usable), 1) if usable else 0.0,
        "inodes_percent": round(100 * (1 - found.f_favail / found.f_files), 1)
        if found.f_files
        else 0.0,
        "free_bytes": found.f_bavail * found.f_frsize,
    }


def haproxy(path: str, command: str = "show stat") -> dict[str, str]:
    """What the runtime socket answers, unparsed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(command.encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)
        parts = iter(lambda: connection.recv(65536), b"")
        return {"stat": b"".join(parts).decode(errors="replace")}


def app(options: dict[str, str]) -> dict[str, Any]:
    """What the release tool says, which version answers, and whether it is ready."""
    found: dict[str, Any] = json.loads(said([options["tool"], "status"]))
    # As the release tool asks it; a host that was configured before there was TLS has no url.
    settings = read_json(options["settings"]) or {}
    site = settings.get("url", "http://127.0.0.1")
    trust = None
    if site.startswith("https:"):
        trust = ssl.create_default_context(cafile=settings["authority"])
    _, body = answer(site + options["version_path"], trust)
    try:
        served = json.loads(body).get("version")
    except (ValueError, AttributeError):
        # Whose version page is a line of text.
        served = body.strip() or None
    return found | {"served": served, "ready": answer(site + options["ready_path"], trust)[0]}


def certificate(folder: str) -> dict[str, Any] | None:
    """When this host's own certificate ends, and what it makes it with; None where it makes none.

    By openssl: the tool that makes it takes ten times the processor's time to start, and nine hosts
    at once on two cores kept each other's reporters from an answer in time.
    """
    settings = read_json(f"{folder}/tls.json")
    if settings is None:
        return None
    ends = {name: ending(Path(folder) / f"{name}.pem") for name in ("leaf", "issuer")}
    return {"hours": settings.get("hours"), "ends": ends}


def ending(path: Path) -> float | None:
    """When the first certificate of a file ends, in seconds since the epoch; None for no file."""
    if not path.exists():
        return None
    told = said(["openssl", "x509", "-noout", "-enddate", "-in", str(path)])
    return ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))


def answer(url: str, trust: ssl.SSLContext | None = None) -> tuple[int | None, str]:
    """Status and the beginning of the body; no status when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS, context=trust) as page:  # noqa: S310  ours
            return page.status, page.read(4096).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return None, ""


def read_json(path: str) -> Any:
    """A file's content; None where there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def said(command: list[str]) -> str:
    """What a command printed; its exit code does not matter."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False
    )
    return done.stdout


def tried(work: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or ``{"error": why}``."""
    try:
        return work(*arguments)
    except (OSError, ValueError, IndexError, AttributeError, subprocess.SubprocessError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Gather what the argument asks for."""
    wanted = json.loads(sys.argv[1])
    found = {
        "at": time.time(),
        "units": tried(units, wanted["units"]),
        "failed_units": tried(failed_units),
        "disks": [tried(disk, path) for path in wanted["disks"]],
        "agent": tried(read_json, "/etc/flotilla/cloudwatch_agent.json"),
    }
    if "haproxy" in wanted:
        found["haproxy"] = tried(haproxy, wanted["haproxy"])
    for name, question in wanted.get("questions", {}).items():
        found[name] = tried(haproxy, wanted["haproxy"], question)
    for name in {"edge", "discovery", "renewal"} & wanted.keys():
        found[name] = tried(read_json, wanted[name])
    if "app" in wanted:
        found["app"] = tried(app, wanted["app"])
    if "redis" in wanted:
        found["redis"] = tried(lambda: json.loads(said(wanted["redis"])))
    if "tls" in wanted:
        found["tls"] = tried(certificate, wanted["tls"])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

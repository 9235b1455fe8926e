"""Dump databases as SQL and load them again: for moving between versions, not for restoring.

The server's own mysqldump and mysql do the work on a host; the text travels through SSH, gzipped.
"""

from __future__ import annotations

import gzip
import re
import shlex
import zlib
from pathlib import Path
from typing import Any

from flotilla.backup.operate import nearest
from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.mysql import store
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import Session, session
from flotilla.settings import Settings

# Silence of a dump: a large table's first rows take their time.
SILENT_SECONDS = 600.0
_BLOCK = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9_$]{1,64}")
_OPTIONS = "--single-transaction --routines --triggers --events --set-gtid-purged=OFF"
# What mysqldump writes last; without it the text was cut off.
_COMPLETE = b"-- Dump completed"


def dump(settings: Settings, databases: list[str], output: Path, *, said: Said) -> dict[str, Any]:
    """Write these databases (all but the server's own, when none is named) to a local file.

    {host, file, bytes, databases}. Raises HostFailed for a dump that is not whole; the file is then
    gone.
    """
    for name in databases:
        if not _NAME.fullmatch(name):
            raise BadOption(f"{name!r} is no name of a database", untouched="Nothing was changed")
    if output.exists():
        raise BadOption(f"{output} exists", "it is not written over", "Nothing was changed")
    with session(settings, fresh=True) as opened:
        host = nearest(opened)
        chosen = databases or _databases(opened, host)
        said(f"dumping {', '.join(chosen)} on {host}")
        command = f"mysqldump {_OPTIONS} --databases {shlex.join(chosen)}"
        try:
            _received(opened, host, command, output)
        except BaseException:
            output.unlink(missing_ok=True)
            raise
    return {"host": host, "file": str(output), "bytes": output.stat().st_size, "databases": chosen}


def load(settings: Settings, source: Path, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Run the SQL of a file on the primary: {host, file, seconds}.

    Raises Refused for a file that is no whole dump, with nothing changed; HostFailed when the
    server refused a statement: what came before it in the file was done.
    """
    _demand_whole(source)
    record = store.records(settings).read()
    with session(settings, fresh=True) as opened:
        seats = opened.cluster.seats.values()
        host = next((s.name for s in seats if record and s.instance_id == record.instance_id), None)
        if host is None:
            raise Refused("no member is the primary of the record", next="fab mysql.status")
        confirmed(f"{settings.prefix}: run all of {source} on {host}, the primary")
        with recorded(settings, f"fab backup.load {source}", said) as steps:
            with steps.step(f"load on {host}"):
                _sent(opened, host, source)
            steps.result = {"host": host, "file": str(source), "seconds": steps.seconds}
        return steps.result


def _databases(opened: Session, host: str) -> list[str]:
    rows = opened.cluster.server(host).query("SHOW DATABASES")
    own = {"information_schema", "mysql", "performance_schema", "sys", "ops"}
    return [row["Database"] for row in rows if row["Database"] not in own]


def _received(opened: Session, host: str, command: str, output: Path) -> None:
    # pipefail: the dump's own failure counts, not the end of gzip.
    channel = opened.runner.stream(
        host, f"bash -o pipefail -c {shlex.quote(f'{command} | gzip -c')}", sudo=True
    )
    channel.settimeout(SILENT_SECONDS)
    tail, unpack = b"", zlib.decompressobj(wbits=31)
    try:
        with output.open("xb") as file:
            while block := channel.recv(_BLOCK):
                file.write(block)
                tail = (tail + unpack.decompress(block))[-4096:]
        code = channel.recv_exit_status()
        said = channel.recv_stderr(_BLOCK).decode(errors="replace").strip()
    except OSError as error:
        raise HostFailed(f"{host}: the dump was cut off ({error})") from error
    finally:
        channel.close()
    if code != 0 or _COMPLETE not in tail:
        raise HostFailed(f"{host}: the dump is not whole: {said or f'exit {code}'}")


def _demand_whole(source: Path) -> None:
    try:
        with gzip.open(source, "rb") as file:
            tail = b""
            while block := file.read(_BLOCK):
                tail = (tail + block)[-4096:]
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(
            f"{source} cannot be read to its end: {error}", untouched="Nothing was changed"
        ) from error
    if _COMPLETE not in tail:
        raise Refused(
            f"{source} is no whole dump: its last line is missing",
            "half of a database would be loaded",
            "Nothing was changed",
            "fab backup.dump",
        )


def _sent(opened: Session, host: str, source: Path) -> None:
    channel = opened.runner.stream(
        host, f"bash -o pipefail -c {shlex.quote('gunzip -c | mysql')}", sudo=True
    )
    channel.settimeout(SILENT_SECONDS)
    try:
        with source.open("rb") as file:
            while block := file.read(_BLOCK):
                channel.sendall(block)
        channel.shutdown_write()
        code = channel.recv_exit_status()
        said = channel.recv_stderr(_BLOCK).decode(errors="replace").strip()
    except OSError as error:
        raise HostFailed(f"{host}: the load was cut off ({error})") from error
    finally:
        channel.close()
    if code != 0:
        raise HostFailed(
            f"{host}: {said or f'exit {code}'}",
            "what came before that statement was done",
            next=f"fab backup.load {source}",
        )

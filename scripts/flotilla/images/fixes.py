"""What is known to be wrong with an image, asked on the operator's machine without booting it.

apt judges: it gets the image's sources, pins and packages from the bill of materials, and folders
of its own, so that this machine's packages stay out of it and untouched. It checks signatures and
compares versions as on a host. debsecan, where it is installed, adds Debian's security tracker.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flotilla import files
from flotilla.errors import FlotillaError
from flotilla.rules import fixes as rules
from flotilla.rules import sbom
from flotilla.rules.fixes import Fixes, Flaws, Report

# Debian publishes four times a day.
FRESH = timedelta(hours=6)
FETCH_SECONDS = 90
_ASK_SECONDS = 60
# Without one of them apt complains, or does not begin.
_FOLDERS = (
    *("state", "../lists/partial", "cache/archives/partial", "etc/apt/apt.conf.d"),
    *("etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d"),
)


class _FailedError(Exception):
    """A program could not answer; the reason in its own words."""


def reports(
    documents: Mapping[str, sbom.Document],
    *,
    scratch: Path,
    now: datetime,
    say: Callable[[str], None],
) -> dict[str, Report]:
    """A report for each document, by the same keys. Raises nothing for what cannot be learned.

    ``say`` gets a line before what takes long. ``scratch`` keeps package lists and answers, so that
    each is asked for once in FRESH.
    """
    found = {}
    lists: dict[Path, Fixes] = {}
    flaws = Flaws(())
    for name, document in documents.items():
        home = _home(scratch, document)
        try:
            status = files.replace(home / f"{name}.status", sbom.dpkg_status(document))
            if home not in lists:
                lists[home] = _fetched(home, document, now, say)
            # What did not answer is not asked for every image.
            if flaws.found is not None:
                flaws = _flaws(status, sbom.suite(document), now)
            found[name] = Report(_fixes(home, status, document, lists[home]), flaws)
        except (FlotillaError, OSError) as error:
            # A full disk keeps nobody from seeing what hosts are launched from.
            found[name] = rules.unknown(str(error))
    return found


def _fixes(home: Path, status: Path, document: sbom.Document, lists: Fixes) -> Fixes:
    if lists.listed_at is None:
        return lists
    option = f"-oDir::State::status={status}"
    argv = ["apt-cache", option, "policy", *sbom.debian_names(document)]
    try:
        told = _kept(status.with_suffix(".policy"), lists.listed_at, lambda: _run(home, *argv))
    except _FailedError as error:
        return Fixes(None, None, str(error))
    return Fixes(rules.policy(told.splitlines()), lists.listed_at, lists.why)


def _flaws(status: Path, suite: str, now: datetime) -> Flaws:
    argv = ["debsecan", "--suite", suite, "--status", str(status), "--format", "summary"]
    try:
        # It fetches Debian's data anew each time.
        told = _kept(status.with_suffix(".debsecan"), now - FRESH, lambda: _run(None, *argv))
    except _FailedError as error:
        return Flaws(None, str(error))
    return Flaws(rules.debsecan(told.splitlines()))


def _kept(path: Path, since: datetime, ask: Callable[[], str]) -> str:
    """An answer of ``since`` or later: the one in the file, or a new one."""
    if path.exists() and path.stat().st_mtime >= since.timestamp():
        return path.read_text(encoding="utf-8")
    answer = ask()
    files.replace(path, answer).touch()
    return answer


def _home(scratch: Path, document: sbom.Document) -> Path:
    """apt's folders for all images with these sources and pins."""
    what = json.dumps([sbom.architecture(document), sbom.apt(document)], sort_keys=True)
    return scratch.resolve() / "apt" / hashlib.sha256(what.encode()).hexdigest()[:16]


def _fetched(
    home: Path, document: sbom.Document, now: datetime, say: Callable[[str], None]
) -> Fixes:
    """Make apt's folders and fetch its lists: when they were, and why not now."""
    stamp = home / "fetched"
    at = datetime.fromtimestamp(stamp.stat().st_mtime, UTC) if stamp.exists() else None
    try:
        _furnish(home, document)
        if at is None or now - at >= FRESH:
            say(f"fetching package lists, once in {FRESH.total_seconds() / 3600:g} hours")
            # Without it a silent source is a warning, and its packages look up to date.
            every = "-oAPT::Update::Error-Mode=any"
            _run(home, "apt-get", every, "-qq", "update", seconds=FETCH_SECONDS)
            stamp.touch()
            at = now
    except _FailedError as error:
        return Fixes(None if at is None else (), at, str(error))
    return Fixes((), at)


def _furnish(home: Path, document: sbom.Document) -> None:
    etc = home / "etc" / "apt"
    for path, text in sbom.apt(document).items():
        # Files that name each other, such as a source its key, mean those beside them.
        files.replace(home / path.lstrip("/"), text.replace("/etc/apt/", f"{etc}/"))
    for folder in _FOLDERS:
        (home / folder).mkdir(parents=True, exist_ok=True)
    # How this machine reaches mirrors (proxies, certificates) holds; nothing else of its apt does.
    ways = _run(None, "apt-config", "dump", "Acquire")
    own = {
        "Acquire::Languages": "none",
        "Acquire::Retries": "0",
        "Acquire::http::Timeout": "10",
        "Acquire::https::Timeout": "10",
        "APT::Architecture": sbom.architecture(document),
        "APT::Architectures": sbom.architecture(document),
        "APT::Sandbox::User": "root",
        "Dir::Etc": f"{etc}/",
        "Dir::State": f"{home / 'state'}/",
        "Dir::State::status": str(files.replace(home / "state" / "status", "")),
        # Shared by images of different sources: what they have in common is fetched once.
        "Dir::State::lists": f"{home.parent / 'lists'}/",
        "APT::Get::List-Cleanup": "false",
        "Dir::Cache": f"{home / 'cache'}/",
    }
    lines = [f'{key} "{value}";\n' for key, value in own.items()]
    files.replace(home / "apt.conf", ways + "".join(lines))


def _run(home: Path | None, *argv: str, seconds: float = _ASK_SECONDS) -> str:
    """What a program printed. Raises _FailedError with its error lines."""
    configured = {} if home is None else {"APT_CONFIG": str(home / "apt.conf")}
    try:
        done = subprocess.run(
            argv,
            env=os.environ | {"LC_ALL": "C.UTF-8"} | configured,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise _FailedError(f"{argv[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise _FailedError(f"{argv[0]} did not answer in {seconds:g} s") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith(("E:", "error:"))] or said
        raise _FailedError(f"{argv[0]}: {' '.join(errors[:2]) or f'exit {done.returncode}'}")
    return done.stdout

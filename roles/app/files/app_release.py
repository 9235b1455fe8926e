#!/usr/bin/python3
"""Fetch, check and switch releases of the application on this host.

Run as root; answers one JSON object on stdout.

    app-release status
    app-release stage VERSION --sha256 HEX     download, or find it there already
    app-release migrate VERSION                bring the schema up to date
    app-release switch VERSION                 stop, point `current` at VERSION, start
    app-release retire                         stop the application and take `current` away
    app-release wait VERSION                   until the host says it is ready and runs VERSION
    app-release prune                          drop old releases
    app-release serve                          do what is asked on stdin, until it ends

Exit 0 done, 1 not done, with one line on stderr that says why. A release is never changed once it
is in place: it is unpacked beside and renamed, so that a host that loses power has all of it or
nothing.

`serve` reads one JSON object a line, {"words": [the words above], "seconds": how long that may
take, "behind": whether it comes after the requests of clients}, and answers {"done": what was asked
for} or {"error": why it was not done}.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
RECORD = ".release.json"
UNIT = "app.service"
MIGRATE_SECONDS = 600
POLL_SECONDS = 0.1
# A release that ends this often while it should start will not get better by waiting.
CRASHES = 3
# Whether it ended is asked once a second: systemctl takes as long as the asking itself.
ASK_EVERY = 10
# Nor one that runs and names another version: twenty answers are two seconds.
WRONG_ANSWERS = 20
WRONG_VERSION = "names version"
ANSWER_SECONDS = 3
# A tenth of what a busy host has, not nothing: also a host that is out of processors must answer.
BEHIND = 10
# Answers in a row before a host counts as ready: one may come from a worker while another one is
# still failing.
PASSES = 2


# What one verb alone needs is imported there: tarfile, urllib and tempfile take as long to load as
# everything else here, and a deploy does this beside the requests of every host.


class NotDoneError(Exception):
    """Why the command stopped, in one line."""


class Host:
    """The files and the service of one host. `root` is / except in tests."""

    def __init__(self, root: Path, base_url: str = "") -> None:
        self.releases = root / "srv/app/releases"
        self.current = root / "srv/app/current"
        self.settings_file = root / "etc/app/release.json"
        self.environment = root / "etc/app/environment"
        self.aws_environment = root / "etc/flotilla/aws.env"
        self.unit = root / "etc/systemd/system" / UNIT
        self.lock = root / "run/lock/app-release.lock"
        # Otherwise as the role says; a host that was configured before that is asked on loopback.
        self.base_url = base_url

    def settings(self) -> dict[str, Any]:
        """What the role wrote. Raises NotDoneError when the host was never configured."""
        try:
            content: dict[str, Any] = json.loads(self.settings_file.read_text())
        except (OSError, ValueError) as error:
            raise NotDoneError(
                f"{self.settings_file} cannot be read ({error}); configure the host first"
            ) from None
        return content

    def version(self) -> str | None:
        """The version `current` points at."""
        try:
            return self.current.readlink().name
        except OSError:
            return None

    def staged(self) -> dict[str, str]:
        """Version and SHA-256 of every complete release on the host."""
        found = {}
        for record in self.releases.glob(f"*/{RECORD}"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = json.loads(record.read_text())
                found[str(content["version"])] = str(content["sha256"])
        return found


def status(host: Host) -> dict[str, Any]:
    """What is on the host and what runs.

    `stale`: started before its environment or unit was last changed.
    """
    shown = systemctl(
        "show", UNIT, "-P", "ActiveState", "-P", "ActiveEnterTimestamp", "--timestamp=unix"
    )
    state, _, entered = shown.partition("\n")
    since = float(entered.strip().lstrip("@") or 0)
    changed = max(
        (p.stat().st_mtime for p in (host.environment, host.unit) if p.is_file()), default=0.0
    )
    active = state.strip() == "active"
    return {
        "current": host.version(),
        "releases": host.staged(),
        "active": active,
        # systemd tells whole seconds: a file of the same second is older than the start in all but
        # a rare case.
        "stale": active and changed >= since + 1,
    }


def stage(host: Host, version: str, sha256: str) -> dict[str, Any]:
    """Put a release on the host, checked. Raises NotDoneError and leaves nothing behind."""
    import hashlib  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    have = host.staged().get(version)
    if have == sha256:
        return {"version": version, "already": True}
    if have:
        raise NotDoneError(
            f"release {version} is here as {have[:12]}, not {sha256[:12]}; a version never changes"
        )
    key = f"app/{version}.tar.gz"
    workspace = Path(tempfile.mkdtemp(prefix=".staging-", dir=host.releases))
    try:
        tarball = workspace / "artifact"
        download(host, key, tarball)
        actual = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if actual != sha256:
            raise NotDoneError(f"{key} is {actual[:12]}, not {sha256[:12]}; it was not unpacked")
        folder = workspace / "release"
        unpack(tarball, folder)
        compile_python(folder)
        (folder / RECORD).write_text(json.dumps({"version": version, "sha256": sha256}))
        shutil.rmtree(host.releases / version, ignore_errors=True)
        folder.rename(host.releases / version)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return {"version": version, "already": False}


def download(host: Host, key: str, target: Path) -> None:
    """Fetch from S3 as the instance's own role; region and endpoint are in flotilla/aws.env."""
    # Late: boto3 takes 0.3 s to load, and only this needs it.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    for line in (
        host.aws_environment.read_text().splitlines() if host.aws_environment.is_file() else ()
    ):
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            os.environ.setdefault(name.strip(), value.strip())
    bucket = host.settings()["bucket"]
    try:
        config = Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 4},
        )
        boto3.client("s3", config=config).download_file(bucket, key, str(target))
    except (BotoCoreError, ClientError) as error:
        raise NotDoneError(f"s3://{bucket}/{key} could not be downloaded: {error}") from None


def unpack(tarball: Path, folder: Path) -> None:
    """Unpack a tarball that may hold nothing that leads out of its own root."""
    import tarfile  # noqa: PLC0415

    folder.mkdir(mode=0o755)
    try:
        with tarfile.open(tarball) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:
                # Before Python 3.11.4 (Debian 12 has 3.11.2) there is no filter: no links then.
                members = [plain(member, folder) for member in tar]
                tar.extractall(folder, members)  # noqa: S202  each was looked at
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NotDoneError(f"the artifact cannot be unpacked: {error}") from None


def plain(member: Any, folder: Path) -> Any:
    """A TarInfo as the filter would leave it: nobody's, and no mode but what an owner may do.

    Raises NotDoneError for what is no file and no folder, or would be outside.
    """
    within = (folder / member.name).resolve().is_relative_to(folder.resolve())
    if not within or not (member.isfile() or member.isdir()):
        raise NotDoneError(f"it cannot be unpacked: {member.name} leads out of it, or is a link")
    member.mode &= 0o755
    # Whoever unpacks it.
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    return member


def switch(host: Host, version: str) -> dict[str, Any]:
    """Run `version`.

    The symlink is replaced by a rename: it is there at every moment, old or new.
    """
    if version not in (here := host.staged()):
        has = ", ".join(sorted(here)) or "none"
        raise NotDoneError(f"release {version} is not on this host; it has {has}")
    previous = host.version()
    systemctl("stop", UNIT)
    fresh = host.current.with_name(".current-new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(host.releases / version)
    fresh.rename(host.current)
    systemctl("reset-failed", UNIT, check=False)
    start()
    return {"previous": previous, "current": host.version()}


def compile_python(folder: Path) -> None:
    """Compile Python sources now: the application cannot write there, and would at every start.

    0.54 s of CPU for the guestbook instead of 0.14, while the host is out of rotation.
    """
    command = [sys.executable, "-m", "compileall", "-q", "-o", "0"]
    run([*command, str(folder)])


def start() -> None:
    """Start the service. Raises NotDoneError with the last lines of its journal."""
    try:
        systemctl("start", UNIT)
    except NotDoneError as error:
        raise NotDoneError(f"{error}; {last_words()}") from None
    # A start takes all the processor there is, and whoever serves beside it is not to wait for it;
    # `wait` gives it its own share back. p99 of the clients of six hosts on two cores: 14 ms
    # without this, 7 before the deploy.
    weigh(service(), BEHIND)


def service() -> str:
    """The process id of the application, "" for none."""
    pid = systemctl("show", UNIT, "-P", "MainPID", check=False).strip()
    return pid if pid.isdecimal() and pid != "0" else ""


def last_words() -> str:
    """The end of the application's journal."""
    command = ["journalctl", "-u", UNIT, "-n", "30", "-o", "cat", "--no-pager"]
    try:
        done = run(command)
    except OSError as error:
        return f"its journal cannot be read ({error})"
    # systemd's own lines about the unit say nothing of the reason.
    said = [line for line in done.stdout.splitlines() if UNIT not in line and line.strip()]
    return f"it said last: {' / '.join(said[-3:])}" if said else "it said nothing"


def retire(host: Host) -> dict[str, Any]:
    """Back to a host without a release, as before its first deploy."""
    previous = host.version()
    systemctl("stop", UNIT)
    host.current.unlink(missing_ok=True)
    return {"previous": previous, "current": None}


def migrate(host: Host, version: str) -> dict[str, Any]:
    """Run the migration command of `version` as the application's user, with its environment."""
    command = host.settings()["migrate"]
    if not command:
        return {"ran": False, "output": ""}
    folder = host.releases / version
    argv = ["systemd-run", "-q", "--wait", "--pipe", "--collect", "--unit=app-migrate"]
    for setting in (
        "User=app",
        "Group=app",
        f"WorkingDirectory={folder}",
        f"EnvironmentFile={host.environment}",
        "Environment=PYTHONDONTWRITEBYTECODE=1",
        f"RuntimeMaxSec={MIGRATE_SECONDS}",
    ):
        argv += ["-p", setting]
    done = run([*argv, *command.split()])
    output = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        said = f"exit {done.returncode}: {output[-500:] or 'no output'}"
        raise NotDoneError(f"the migration of {version} failed ({said})")
    return {"ran": True, "output": output}


def wait(host: Host, version: str, seconds: float) -> dict[str, Any]:
    """Wait until the host answers "ready" and names `version`, PASSES times in a row."""
    settings = host.settings()
    started = time.monotonic()
    passes, same, why = 0, 0, "it was not asked yet"
    while passes < PASSES:
        if time.monotonic() - started > seconds:
            raise NotDoneError(f"{version} is not ready after {seconds:g} s: {why}; {last_words()}")
        base_url = host.base_url or settings.get("url", "http://127.0.0.1")
        problem = not_ready(base_url, settings, version)
        if problem is None:
            passes += 1
            continue
        passes, same, why = 0, same + 1 if problem == why else 0, problem
        give_up(version, problem, same)
        time.sleep(POLL_SECONDS)
    weigh(service(), 0)
    return {"version": version, "seconds": round(time.monotonic() - started, 2)}


def give_up(version: str, problem: str, same: int) -> None:
    """Raise NotDoneError when waiting longer would not help."""
    if same % ASK_EVERY == 0:
        ended = int(systemctl("show", UNIT, "-P", "NRestarts").strip() or 0)
        if ended >= CRASHES:
            raise NotDoneError(f"version {version} ended {ended} times; {last_words()}")
    # The old release was stopped before: it is the new one that names another version.
    if WRONG_VERSION in problem and same >= WRONG_ANSWERS:
        raise NotDoneError(f"{problem}, not {version!r}")


def not_ready(base_url: str, settings: dict[str, Any], version: str) -> str | None:
    """Why the host is not ready with `version`; None when it is."""
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    trust = None
    if base_url.startswith("https:"):
        import ssl  # noqa: PLC0415

        trust = ssl.create_default_context(cafile=settings["authority"])
    for path in (settings["version_path"], settings["ready_path"]):
        try:
            with urllib.request.urlopen(  # noqa: S310  this host
                base_url + path, timeout=ANSWER_SECONDS, context=trust
            ) as answer:
                body = answer.read(65536)
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace").strip()
            return f"GET {path} answered {error.code}: {said}"
        except OSError as error:
            return f"GET {path}: {error}"
        if path == settings["version_path"] and (answered := named_version(body)) != version:
            return f"GET {path} {WRONG_VERSION} {answered!r}"
    return None


def named_version(body: bytes) -> str:
    """The version in an answer: the key `version` of a JSON object, else the whole text."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(body)["version"])
    return body.decode(errors="replace").strip()


def prune(host: Host) -> dict[str, Any]:
    """Keep the current release and the `keep` newest others; drop what a broken staging left."""
    keep = int(host.settings()["keep"])
    others = [
        path.parent
        for path in host.releases.glob(f"*/{RECORD}")
        if path.parent.name != host.version()
    ]
    others.sort(key=lambda path: path.stat().st_ctime, reverse=True)
    dropped = [*others[keep:], *host.releases.glob(".staging-*")]
    for path in dropped:
        shutil.rmtree(path, ignore_errors=True)
    return {"dropped": sorted(path.name for path in dropped)}


def systemctl(*words: str, check: bool = True) -> str:
    """Run systemctl. Raises NotDoneError with what it said."""
    done = run(["systemctl", *words])
    if check and done.returncode != 0:
        raise NotDoneError(
            f"systemctl {' '.join(words)}: {done.stderr.strip() or f'exit {done.returncode}'}"
        )
    return done.stdout


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with no input: ours may be the questions of `serve`."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def version_argument(text: str) -> str:
    """A version is one path element and safe in a shell."""
    if not VERSION.match(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a version: 1 to 64 letters, digits or any of . _ -"
        )
    return text


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="app-release", description="Releases of the application on this host."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("status", "retire", "prune", "serve"):
        verbs.add_parser(verb)
    for verb in ("stage", "migrate", "switch", "wait"):
        verbs.add_parser(verb).add_argument("version", type=version_argument)
    verbs.choices["stage"].add_argument("--sha256", required=True)
    verbs.choices["wait"].add_argument("--seconds", type=float)
    return parser.parse_args(argv)


def perform(host: Host, options: argparse.Namespace) -> dict[str, Any]:
    """Run one verb. Those that change something hold the host's lock."""
    if options.verb == "status":
        return status(host)
    if options.verb == "wait":
        return wait(host, options.version, options.seconds or host.settings()["boot_seconds"])
    with host.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NotDoneError("another app-release is at work on this host") from None
        if options.verb == "stage":
            return stage(host, options.version, options.sha256)
        if options.verb in {"retire", "prune"}:
            return {"retire": retire, "prune": prune}[options.verb](host)
        return {"migrate": migrate, "switch": switch}[options.verb](host, options.version)


def serve(host: Host, question: str) -> dict[str, Any]:
    """The answer to one question; see the top of this file."""
    asked = json.loads(question)
    weigh("self", BEHIND if asked["behind"] else 0)
    try:
        with time_limit(asked["seconds"]):
            return {"done": perform(host, arguments(asked["words"]))}
    except (NotDoneError, OSError) as error:
        return {"error": one_line(error)}


def weigh(process: str, nice: int) -> None:
    """Weigh a process's session against the others; sched(7), "The autogroup feature".

    A nice value of its own would count inside of that session only.
    """
    with contextlib.suppress(OSError):
        Path("/proc", process, "autogroup").write_text(str(nice))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise NotDoneError in the block after so long; a command that it runs is ended."""

    def late(*_: object) -> None:
        raise NotDoneError(f"it was ended after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_line(error: Exception) -> str:
    """Whatever a tool said: whoever calls us over SSH shows one line."""
    return " ".join(str(error).split()) or type(error).__name__


def main(argv: list[str] | None = None, root: Path = Path("/")) -> int:
    """Run one command line."""
    os.umask(0o022)
    host, options = Host(root), arguments(argv)
    if options.verb == "serve":
        for question in sys.stdin:
            sys.stdout.write(json.dumps(serve(host, question)) + "\n")
            sys.stdout.flush()
        return 0
    try:
        result = perform(host, options)
    except NotDoneError as error:
        sys.stderr.write(f"app-release: {one_line(error)}\n")
        return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

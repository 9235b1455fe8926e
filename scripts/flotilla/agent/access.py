"""Keep what sshd trusts as the fleet says: its CA, what is revoked, and which account is whose.

``watch`` asks S3 every few seconds; ``apply`` is told on stdin, by an operator who cannot wait for
that. Both do the same, one at a time. A host that was never told anything trusts no certificate;
one that loses S3 goes on with what it has until it boots: systemd-tmpfiles empties the file of the
CA then, and the first look puts it back. sshd reads the files at every login: nothing is reloaded.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flotilla.agent.patience import METADATA, insist
from flotilla.aws.lean import AnswerError, Api
from flotilla.aws.own_role import METADATA_URL, OwnRole
from flotilla.errors import FlotillaError, Refused
from flotilla.rules.access import Trust

FOLDER = Path("/etc/ssh/flotilla")
TRUST = "access/trust.json"
PERIOD_SECONDS = 5.0
# Each so many times all of it, though it is the same: a file that was damaged since is put right
# within a minute. Without the one of what is revoked sshd takes no key of anybody.
ALL_EVERY = 12
# What was applied last: its generation, and the hash of the document.
_APPLIED = "applied.json"

log = logging.getLogger("flotilla.access")


def apply(body: bytes, tier: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Make the files of ``folder`` what a document says: {generation, sha256, changed}.

    Raises Refused, with nothing changed, for one that sshd could not read (it would then take no
    key of anybody) or that is older than what is there.
    """
    try:
        trust = Trust.parse(body, tier)
    except ValueError as error:
        raise Refused(f"the document is not for us: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        before = applied(folder)
        if trust.generation < before.get("generation", 0):
            raise Refused(
                f"it is of generation {trust.generation}, and {before['generation']} is in place"
            )
        _demand_readable(trust.revoked, folder)
        # Who is out before who is in: nobody who was revoked gets in between.
        changed = [_put(folder / "revoked", trust.revoked)]
        accounts = folder / "principals"
        accounts.mkdir(exist_ok=True)
        for path in accounts.iterdir():
            if path.name not in trust.principals:
                path.unlink()
                changed.append(True)
        for account, names in trust.principals.items():
            changed.append(_put(accounts / account, "".join(f"{n}\n" for n in names).encode()))
        changed.append(_put(folder / "user_ca.pub", f"{trust.user_ca}\n".encode()))
        now = {"generation": trust.generation, "sha256": hashlib.sha256(body).hexdigest()}
        _put(folder / _APPLIED, json.dumps(now).encode())
    return now | {"changed": any(changed)}


def applied(folder: Path = FOLDER) -> dict[str, Any]:
    """{generation, sha256} of what is in place; empty before anything was, or where it is damaged:
    nothing that is told later may fail by that.
    """
    try:
        found = json.loads((folder / _APPLIED).read_bytes())
        return {"generation": int(found["generation"]), "sha256": str(found["sha256"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class Watch:
    """Follows one object; ``ask`` is ``Api.s3_object`` for it, given the last ETag."""

    def __init__(
        self, ask: Callable[[str], tuple[str, bytes] | None], tier: str, folder: Path = FOLDER
    ) -> None:
        self._ask = ask
        self._tier = tier
        self._folder = folder
        self._etag = ""
        self._looks = 0
        self._said = ""

    def look(self) -> None:
        """Ask once, and apply what is new. Never raises for what may pass."""
        self._looks += 1
        try:
            found = self._ask(self._etag if self._looks % ALL_EVERY else "")
            if found is not None:
                told = apply(found[1], self._tier, self._folder)
                if told["changed"] or not self._etag:
                    log.info("generation %s is in place", told["generation"])
                self._etag = found[0]
            self._said = ""
        except (FlotillaError, OSError) as error:
            why = _absent(error)
            if why != self._said:
                log.warning("what is in place stays: %s", why)
            self._said = why


def _absent(error: FlotillaError | OSError) -> str:
    if isinstance(error, AnswerError) and error.code in {"403", "404"}:
        return "the fleet has not said yet whom to trust (fab fleet.configure)"
    return error.what if isinstance(error, FlotillaError) else str(error)


def watch() -> None:
    """Ask for as long as the host runs."""
    role = OwnRole(os.environ.get(METADATA, METADATA_URL))
    fleet, env, tier = (
        insist(lambda n=name: role.text(f"tags/instance/{n}"))  # type: ignore[misc]
        for name in ("Fleet", "Env", "Role")
    )
    region = insist(lambda: role.text("placement/region"))
    api = Api(region, role, endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
    bucket = f"{fleet}-{env}-artifacts"
    following = Watch(lambda etag: api.s3_object(bucket, TRUST, etag), tier)
    while True:
        following.look()
        time.sleep(PERIOD_SECONDS)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _demand_readable(revoked: bytes, folder: Path) -> None:
    trial = folder / "revoked.trial"
    trial.write_bytes(revoked)
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Q", "-l", "-f", str(trial)], capture_output=True, check=False
        )
    finally:
        trial.unlink()
    if done.returncode:
        raise Refused("ssh-keygen cannot read its list of what is revoked")


def _put(path: Path, content: bytes) -> bool:
    """Whether it differed; sshd sees the old file or the new one."""
    if path.exists() and path.read_bytes() == content:
        return False
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return True


def main() -> int:
    """Exit 0 done, 1 the disk did not take all of it, 3 refused and nothing changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["watch", "apply", "show"])
    parser.add_argument("--tier", default="", help="apply: whose accounts; bastion has others")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.verb == "watch":
            watch()
        told = applied() if options.verb == "show" else apply(sys.stdin.buffer.read(), options.tier)
    except FlotillaError as error:
        sys.stderr.write(f"{error.what}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"what is in place stays, as far as it goes: {error}\n")
        return 1
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Host keys from a source that a man in the middle does not have: EC2's console output.

cloud-init prints a new host's public keys there. They are cached by instance id, since AWS keeps
only the last 64 kB of a console; an address that comes back with another instance has other keys.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from flotilla.errors import Unreachable
from flotilla.files import replace
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import DeadlineError, until

Keys = dict[str, tuple[str, ...]]  # by instance id: "ssh-ed25519 AAAA..."

_BLOCK = re.compile(
    r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL
)
_KEY = re.compile(r"\b((?:ssh|ecdsa)-[a-z0-9-]+) ([A-Za-z0-9+/]{32,}={0,2})")
_THREADS = 16


def parse(console: str) -> tuple[str, ...]:
    """The keys in a console's last complete block, ed25519 first; empty while there is none.

    The last one, because an image may carry the console text of the host it was made from.
    Lines may have a kernel or cloud-init prefix; a key whose body names another type is left out.
    """
    blocks = _BLOCK.findall(console)
    found = _KEY.findall(blocks[-1]) if blocks else []
    keys = {f"{kind} {body}" for kind, body in found if _names_itself(kind, body)}
    return tuple(sorted(keys, key=lambda key: (not key.startswith("ssh-ed25519"), key)))


def load(settings: Settings) -> Keys:
    """The cached keys of every host seen so far; empty when there is no cache."""
    try:
        stored = json.loads(_cache(settings).read_text(encoding="utf-8"))
        return {instance: tuple(map(str, keys)) for instance, keys in stored.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def ensure(
    settings: Settings,
    hosts: Sequence[Host],
    console: Callable[[str], str],
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Keys:
    """The keys of ``hosts``, asking ``console`` (instance id to text) for those not cached.

    Waits at most ``seconds`` for hosts that have not printed theirs; those are then not in the
    result. The cache keeps only hosts that are in ``hosts``. While the API is down (Unreachable),
    what is cached is returned.
    """
    cached = load(settings)
    keys: Keys = {host.instance_id: cached.get(host.instance_id, ()) for host in hosts}

    def all_known() -> bool:
        missing = [instance for instance, known in keys.items() if not known]
        if missing:
            with ThreadPoolExecutor(max_workers=min(_THREADS, len(missing))) as pool:
                texts = pool.map(console, missing)
                keys.update(zip(missing, map(parse, texts), strict=True))
        return all(keys.values())

    # The caller sees who is missing, and nothing connects to a host without keys.
    with suppress(DeadlineError, Unreachable):
        until(all_known, seconds=seconds, every=0.5, clock=clock, sleep=sleep)
    known = {instance: theirs for instance, theirs in keys.items() if theirs}
    if known != cached:
        replace(_cache(settings), json.dumps(known, indent=1) + "\n")
    return known


def write(settings: Settings, hosts: Iterable[Host], keys: Mapping[str, Sequence[str]]) -> Path:
    """Write ``var/<env>/known_hosts`` for OpenSSH: every host under its name and addresses."""
    lines = [
        f"{','.join(names)} {key}"
        for host in hosts
        for names in [[n for n in (host.name, host.private_ip, host.public_ip) if n]]
        for key in keys.get(host.instance_id, ())
    ]
    return replace(settings.scratch / "known_hosts", "".join(f"{line}\n" for line in lines))


def _names_itself(kind: str, body: str) -> bool:
    try:
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return False
    return blob[4 : 4 + int.from_bytes(blob[:4], "big")] == kind.encode()


def _cache(settings: Settings) -> Path:
    return settings.scratch / "host_keys.json"

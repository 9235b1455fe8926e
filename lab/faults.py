"""Break the lab on purpose, on real hosts, and put it right again.

Every fault is known here until it is healed, so that `heal` undoes all of them and the status can
list them. What a fault does to packets is decided in `lab.cuts`, what to the API in `lab.outage`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import cuts
from lab.errors import LabError
from lab.fault_kinds import KINDS, Fault, as_cut, check_known, resolve
from lab.ports import Context

_active: dict[int, Fault] = {}
_numbers = itertools.count(1)
_lock = threading.RLock()
_listening: list[Context] = []


def inject(
    context: Context, kind: str, target: str, args: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Break something; returns the fault as JSON-able data.

    `target` is a host (instance id or Name), a zone for kind `zone`, "api" for faults of the API.
    Raises ValueError, with the valid choices, for a kind, target or argument that there is not.
    """
    if kind == "thaw":
        return heal(context, target, kinds=("freeze",))
    if kind not in KINDS:
        raise ValueError(f"there is no fault {kind!r}; choose from: {', '.join([*KINDS, 'thaw'])}")
    given = {str(name): str(value) for name, value in (args or {}).items() if value is not None}
    unknown = sorted(set(given) - set(KINDS[kind].args))
    if unknown:
        takes = ", ".join(KINDS[kind].args) or "no arguments"
        raise ValueError(f"{kind} does not know {', '.join(unknown)}; it takes: {takes}")
    struck, name = resolve(context, KINDS[kind].strikes, kind, target)
    fault = Fault(next(_numbers), kind, struck, name, given, datetime.now(UTC))
    _listen(context)
    with _lock:
        _check_no_loss(fault)
        fault.did.update(KINDS[kind].strike(context, fault))
        _active[fault.number] = fault
        _settle(context, [fault])
    context.log("fault", fault.shown())
    return fault.shown()


def heal(
    context: Context, target: str | None = None, *, kinds: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Undo the faults of one host, zone or the API, or all of them; the newest first.

    Returns {"healed": [...], "failed": [{..., "error": text}]}. Raises ValueError for a target
    that is neither struck nor known.
    """
    with _lock:
        chosen = [
            fault
            for fault in sorted(_active.values(), key=lambda fault: -fault.number)
            if target in (None, fault.target, fault.name) and (not kinds or fault.kind in kinds)
        ]
        if target is not None and not chosen:
            check_known(context, target)
        healed, failed = [], []
        for fault in chosen:
            try:
                _undo(context, fault)
                healed.append(fault.shown())
            except (LabError, OSError, ValueError) as error:
                failed.append({**fault.shown(), "error": str(error)})
        _settle(context, chosen)
    for shown in healed:
        context.log("healed", shown)
    return {"healed": healed, "failed": failed}


def active() -> list[dict[str, Any]]:
    """The faults in force, oldest first, as JSON-able data."""
    return [fault.shown() for _, fault in sorted(_active.items())]


def _undo(context: Context, fault: Fault) -> None:
    gone = KINDS[fault.kind].strikes == "host" and context.hosts.netns(fault.target) is None
    if not gone:
        KINDS[fault.kind].undo(context, fault)
    _active.pop(fault.number)


def _check_no_loss(fault: Fault) -> None:
    full = [f for f in _active.values() if f.kind == "fill-disk" and f.target == fault.target]
    if fault.kind == "kill" and full:
        raise ValueError(
            f"the full disk of {fault.name} is in its memory, and a host without power would lose "
            f"what is under {full[0].args['path']}; heal that fault first"
        )


def _settle(context: Context, changed: Iterable[Fault]) -> None:
    """Make every host's packet losses what the faults in force say, if `changed` bear on them."""
    if not any(fault.kind in ("cut", "zone") for fault in changed):
        return
    struck = [as_cut(fault) for fault in _active.values() if fault.kind in ("cut", "zone")]
    with context.lock:
        nodes = [
            cuts.Node(instance.id, instance.private_ip, instance.placement.zone)
            for instance in context.ec2().all_instances()
            if context.hosts.netns(instance.id)
        ]
    for instance_id, text in cuts.tables(struck, nodes).items():
        _load(context, instance_id, text)


def _load(context: Context, instance_id: str, text: str) -> None:
    namespace = context.hosts.netns(instance_id)
    if namespace is None:
        return
    done = context.hosts.in_netns(instance_id, ["nft", "-f", "-"], stdin=text)
    # A host may be terminated between the look and the act: what is gone loses no packets.
    if done.returncode and Path("/run/netns", namespace).exists():
        raise LabError(f"{instance_id}: nft refused a fault: {done.stderr.strip()}")


def _listen(context: Context) -> None:
    if context not in _listening:
        _listening.append(context)
        context.on_instance_state(lambda *changed: _on_state(context, *changed))


def _on_state(context: Context, instance_id: str, state: str) -> None:
    """A terminated host takes its faults along; one that comes up in a cut zone is cut off too."""
    with _lock:
        if state == "terminated":
            for fault in [fault for fault in _active.values() if fault.target == instance_id]:
                _active.pop(fault.number)
        elif state == "running":
            _settle(context, list(_active.values()))

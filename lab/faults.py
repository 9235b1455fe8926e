"""Break the lab on purpose, on real hosts, and put it right again.

Every fault is known here until it is healed, so that `heal` undoes all of them and the status can
list them. What a fault does to packets is decided in `lab.cuts`, what to the API in `lab.outage`.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from lab import cuts, filldisk, processes
from lab.errors import LabError
from lab.outage import MODES, ApiFault, gate
from lab.ports import Context

API = "api"
_NOTICED_SECONDS = 10.0

_active: dict[int, Fault] = {}
_numbers = itertools.count(1)
_lock = threading.RLock()
_listening: list[Context] = []


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault in force.

    `target` is an instance id, a zone or "api"; `name` what the operator calls it; `did` what
    came of it.
    """

    number: int
    kind: str
    target: str
    name: str
    args: Mapping[str, str]
    since: datetime
    did: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "number": self.number,
            "kind": self.kind,
            "host": self.name,
            "target": self.target,
            "args": dict(self.args),
            "since": self.since.isoformat(timespec="seconds"),
            **self.did,
        }


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of fault strikes, what it does, how it is undone, the arguments it takes."""

    strikes: Literal["host", "zone", "api"]
    strike: Callable[[Context, Fault], dict[str, Any]]
    undo: Callable[[Context, Fault], None]
    args: tuple[str, ...] = ()


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
    struck, name = _target(context, KINDS[kind].strikes, kind, target)
    fault = Fault(next(_numbers), kind, struck, name, given, datetime.now(UTC))
    with _lock:
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
            _known(context, target)
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


# --- who is struck --------------------------------------------------------------------------------


def _hosts(context: Context) -> dict[str, str]:
    """Name (tag, else instance id) by instance id, of every instance that has a host."""
    names = {}
    with context.lock:
        for instance in context.ec2().all_instances():
            if context.hosts.netns(instance.id):
                tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
                names[instance.id] = tags.get("Name") or instance.id
    return names


def _target(context: Context, strikes: str, kind: str, target: str) -> tuple[str, str]:
    if strikes == "api":
        if target != API:
            raise ValueError(f"{kind} strikes the API, not {target!r}; its target is: {API}")
        return API, API
    if strikes == "zone":
        if target not in context.zones:
            raise ValueError(
                f"there is no zone {target!r}; choose from: {', '.join(context.zones)}"
            )
        return target, target
    return _host(context, target)


def _host(context: Context, target: str) -> tuple[str, str]:
    names = _hosts(context)
    found = [item for item in names.items() if target in item]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(instance_id for instance_id, _ in found)
        raise ValueError(f"{len(found)} hosts are named {target!r}; say which: {ids}")
    known = ", ".join(sorted(set(names.values()))) or "none runs"
    raise ValueError(f"there is no host {target!r}; hosts: {known}")


def _known(context: Context, target: str) -> None:
    if target != API and target not in context.zones:
        _host(context, target)


def _running(context: Context, fault: Fault) -> int:
    pid = context.hosts.pid(fault.target)
    if not pid:
        raise ValueError(f"{fault.name} does not run; start it first, or choose another host")
    return pid


# --- packets --------------------------------------------------------------------------------------


def _settle(context: Context, changed: Iterable[Fault]) -> None:
    """Make every host's packet losses what the faults in force say, if `changed` bear on them."""
    if not any(fault.kind in ("cut", "zone") for fault in changed):
        return
    struck = [_as_cut(fault) for fault in _active.values() if fault.kind in ("cut", "zone")]
    with context.lock:
        nodes = [
            cuts.Node(instance.id, instance.private_ip, instance.placement.zone)
            for instance in context.ec2().all_instances()
            if context.hosts.netns(instance.id)
        ]
    for instance_id, text in cuts.tables(struck, nodes).items():
        _load(context, instance_id, text)
    if context not in _listening:
        _listening.append(context)
        context.on_instance_state(lambda _, state: _newcomer(context, state))


def _load(context: Context, instance_id: str, text: str) -> None:
    namespace = context.hosts.netns(instance_id)
    if namespace is None:
        return
    done = context.hosts.in_netns(instance_id, ["nft", "-f", "-"], stdin=text)
    # A host may be terminated between the look and the act: what is gone loses no packets.
    if done.returncode and Path("/run/netns", namespace).exists():
        raise LabError(f"{instance_id}: nft refused a fault: {done.stderr.strip()}")


def _newcomer(context: Context, state: str) -> None:
    """A host that comes up in a zone that is cut off is cut off too, and the others learn of it."""
    if state == "running":
        with _lock:
            _settle(context, list(_active.values()))


def _as_cut(fault: Fault) -> cuts.Cut | cuts.ZoneCut:
    if fault.kind == "zone":
        return cuts.ZoneCut(fault.target)
    peers, direction = fault.did["peers"], fault.args.get("direction", "both")
    return cuts.Cut(fault.target, None if peers is None else tuple(peers), cast("Any", direction))


def _cut(context: Context, fault: Fault) -> dict[str, Any]:
    if fault.args.get("direction", "both") not in cuts.DIRECTIONS:
        raise ValueError(f"direction must be one of: {', '.join(cuts.DIRECTIONS)}")
    named = [name.strip() for name in fault.args.get("from", "all").split(",")]
    if "all" in named:
        return {"peers": None}
    peers = [name if name in cuts.PLACES else _host(context, name)[0] for name in named]
    if fault.target in peers:
        raise ValueError(f"{fault.name} cannot be cut from itself")
    return {"peers": peers}


# --- hosts and processes --------------------------------------------------------------------------


def _kill(context: Context, fault: Fault) -> dict[str, Any]:
    pid = _running(context, fault)
    context.hosts.crash(fault.target)
    return {"pid": pid}


def _revive(context: Context, fault: Fault) -> None:
    deadline = time.monotonic() + _NOTICED_SECONDS
    instance = context.ec2().get_instance_by_id(fault.target)
    while instance is not None and instance.state == "running" and time.monotonic() < deadline:
        if context.hosts.pid(fault.target) and fault.did["pid"] != context.hosts.pid(fault.target):
            return  # somebody started it again already
        time.sleep(0.05)  # its end has not been noticed yet
    if instance is not None and instance.state == "stopped":
        with context.lock:
            context.ec2().start_instances([fault.target])


def _freeze(context: Context, fault: Fault) -> dict[str, Any]:
    _running(context, fault)
    context.hosts.freeze(fault.target)
    return {}


def _thaw(context: Context, fault: Fault) -> None:
    context.hosts.thaw(fault.target)


def _processes(context: Context, fault: Fault) -> list[processes.Process]:
    running = processes.of_host(_running(context, fault))
    args = {name: fault.args.get(name) for name in ("unit", "pattern")}
    found = processes.chosen(running, **args)
    if not found:
        units = sorted({process.unit for process in running if process.unit.endswith(".service")})
        wanted = args["unit"] or args["pattern"]
        raise ValueError(
            f"no process of {wanted!r} runs on {fault.name}; units: {', '.join(units)}"
        )
    return found


def _kill_process(context: Context, fault: Fault) -> dict[str, Any]:
    name = fault.args.get("signal", "KILL").upper().removeprefix("SIG")
    if f"SIG{name}" not in signal.Signals.__members__:
        raise ValueError(f"there is no signal {name!r}; for example KILL, TERM, SEGV, ABRT, HUP")
    reached = processes.send(_processes(context, fault), signal.Signals[f"SIG{name}"])
    return {
        "signal": name,
        "processes": [process.command for process in reached],
        "units": sorted({process.unit for process in reached if process.unit}),
    }


def _start_units(context: Context, fault: Fault) -> None:
    units = [unit for unit in fault.did.get("units", ()) if unit.endswith(".service")]
    if units and context.hosts.pid(fault.target):
        context.hosts.exec(fault.target, ["systemctl", "reset-failed", *units])
        context.hosts.exec(fault.target, ["systemctl", "start", "--no-block", *units])


def _stop_process(context: Context, fault: Fault) -> dict[str, Any]:
    reached = processes.send(_processes(context, fault), signal.SIGSTOP)
    return {"processes": [process.command for process in reached]}


def _continue_process(context: Context, fault: Fault) -> None:
    pid = context.hosts.pid(fault.target)
    if pid:
        args = {name: fault.args.get(name) for name in ("unit", "pattern")}
        processes.send(processes.chosen(processes.of_host(pid), **args), signal.SIGCONT)


# --- disk and API ---------------------------------------------------------------------------------


def _number(fault: Fault, name: str, default: float | None = None) -> float:
    text = fault.args.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = None
    if value is None or value < 0:
        raise ValueError(f"{fault.kind} needs {name}=NUMBER, 0 or more; got {text!r}")
    return value


def _fill_disk(context: Context, fault: Fault) -> dict[str, Any]:
    _running(context, fault)
    if "path" not in fault.args:
        raise ValueError("fill-disk needs path=DIRECTORY, such as path=/var/log")
    left = filldisk.fill(
        context.hosts,
        fault.target,
        fault.args["path"],
        free_bytes=int(_number(fault, "free", 0)),
        units=_units(fault),
        number=fault.number,
    )
    return {"free_bytes": left}


def _empty_disk(context: Context, fault: Fault) -> None:
    if context.hosts.pid(fault.target):
        filldisk.empty(
            context.hosts,
            fault.target,
            fault.args["path"],
            units=_units(fault),
            number=fault.number,
        )


def _units(fault: Fault) -> list[str]:
    return [unit.strip() for unit in fault.args.get("unit", "").split(",") if unit.strip()]


def _slow_api(_: Context, fault: Fault) -> dict[str, Any]:
    seconds = _number(fault, "seconds")
    gate.set(fault.number, ApiFault(fault.args.get("action"), delay_seconds=seconds))
    return {}


def _api_outage(_: Context, fault: Fault) -> dict[str, Any]:
    mode = fault.args.get("mode", MODES[0])
    if mode not in MODES:
        raise ValueError(f"api-outage knows no mode {mode!r}; choose from: {', '.join(MODES)}")
    gate.set(fault.number, ApiFault(fault.args.get("action"), mode=mode))
    return {}


def _end_api_fault(_: Context, fault: Fault) -> None:
    gate.set(fault.number, None)


def _nothing(_: Context, __: Fault) -> None:
    """What it did to packets ends with the fault itself."""


KINDS: Mapping[str, Kind] = {
    "kill": Kind("host", _kill, _revive),
    "kill-process": Kind("host", _kill_process, _start_units, ("unit", "pattern", "signal")),
    "freeze": Kind("host", _freeze, _thaw),
    "freeze-process": Kind("host", _stop_process, _continue_process, ("unit", "pattern")),
    "cut": Kind("host", _cut, _nothing, ("from", "direction")),
    "zone": Kind("zone", lambda _, __: {}, _nothing),
    "fill-disk": Kind("host", _fill_disk, _empty_disk, ("path", "free", "unit")),
    "slow-api": Kind("api", _slow_api, _end_api_fault, ("action", "seconds")),
    "api-outage": Kind("api", _api_outage, _end_api_fault, ("action", "mode")),
}

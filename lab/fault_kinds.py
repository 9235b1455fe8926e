"""Every kind of fault: what it strikes, what it does there, how it is undone."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from lab import cuts, filldisk, processes
from lab.outage import MODES, ApiFault, gate
from lab.ports import Context

API = "api"
_NOTICED_SECONDS = 10.0


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


# --- who is struck --------------------------------------------------------------------------------


def _names(context: Context) -> dict[str, str]:
    """Name (tag, else instance id) by instance id, of every instance that has a host."""
    names = {}
    with context.lock:
        for instance in context.ec2().all_instances():
            if context.hosts.netns(instance.id):
                tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
                names[instance.id] = tags.get("Name") or instance.id
    return names


def resolve(context: Context, strikes: str, kind: str, target: str) -> tuple[str, str]:
    """Instance id, zone or "api", and its name. Raises ValueError with the choices there are."""
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
    return host(context, target)


def host(context: Context, target: str) -> tuple[str, str]:
    """Instance id and name of the host meant. Raises ValueError with the hosts there are."""
    names = _names(context)
    found = [item for item in names.items() if target in item]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(instance_id for instance_id, _ in found)
        raise ValueError(f"{len(found)} hosts are named {target!r}; say which: {ids}")
    known = ", ".join(sorted(set(names.values()))) or "none runs"
    raise ValueError(f"there is no host {target!r}; hosts: {known}")


def check_known(context: Context, target: str) -> None:
    """Raise ValueError for what is neither a host nor a zone nor the API."""
    if target != API and target not in context.zones:
        host(context, target)


def _running(context: Context, fault: Fault) -> int:
    pid = context.hosts.pid(fault.target)
    if not pid:
        raise ValueError(f"{fault.name} does not run; start it first, or choose another host")
    return pid


def as_cut(fault: Fault) -> cuts.Cut | cuts.ZoneCut:
    """What a fault of kind `cut` or `zone` means for packets."""
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
    peers = [name if name in cuts.PLACES else host(context, name)[0] for name in named]
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
    if value is None or not 0 <= value < math.inf:
        raise ValueError(f"{fault.kind} needs {name}=NUMBER, 0 or more; got {text!r}")
    return value


def _fill_disk(context: Context, fault: Fault) -> dict[str, Any]:
    pid = _running(context, fault)
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
    return {"free_bytes": left, "pid": pid}


def _empty_disk(context: Context, fault: Fault) -> None:
    if context.hosts.pid(fault.target) != fault.did["pid"]:
        fault.did["note"] = "the host stopped meanwhile: what was written there since is gone"
    else:
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


def _slow_stop(_: Context, fault: Fault) -> dict[str, Any]:
    seconds = _number(fault, "seconds")
    gate.set(fault.number, ApiFault("StopInstances", linger_seconds=seconds))
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
    # As on AWS: the answer comes at once, and the host goes on in state "stopping" for a while.
    "slow-stop": Kind("api", _slow_stop, _end_api_fault, ("seconds",)),
    "api-outage": Kind("api", _api_outage, _end_api_fault, ("action", "mode")),
}

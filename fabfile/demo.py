"""The whole of it, in the lab: a fleet from nothing, a deploy and a switchover under traffic."""

from __future__ import annotations

from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show

_PLAN = """\
The demo starts the lab on this machine, bakes six images, launches 12 hosts, configures them,
deploys the sample application, and while clients are served rolls out a second version and moves
the MySQL primary. Packages are downloaded; nothing else outside this machine is touched.
`make clean` removes it all."""


@task(help={**YES, **JSON})
def run(_: Context, yes: bool = False, json: bool = False) -> None:
    """From nothing to a serving fleet, then a rolling deploy and a switchover under traffic.

    What is there already is used again. The figures are kept in var/demo.json. Interrupted, it
    takes down the lab that it has started. Exit 0 no request failed and no write was lost, 1 or 2
    something did, 99 interrupted.
    """
    from flotilla import config, demo, status
    from flotilla.errors import INTERRUPTED

    attempt(lambda: confirm(_PLAN, yes=yes, again="fab demo.run"), json=json)
    settings = attempt(lambda: config.load("lab"), json=json)
    lab = _Lab()
    try:
        told = attempt(lambda: _perform(settings, lab), json=json)
    except Exit as ended:
        if ended.code == INTERRUPTED:
            lab.leave()
        raise
    demo.record(settings.root / "var" / "demo.json", told)
    if not json:
        status.show(status.status(settings))
    show(told, json=json, text=_figures(told))
    fault = demo.verdict(told)
    if fault:
        raise Exit(str(fault), code=fault.exit_code)


def _perform(settings: Any, lab: _Lab) -> dict[str, Any]:
    """All phases; SIGTERM and the terminal going away count as an interruption."""
    import os
    import signal
    import time

    from flotilla import demo

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    begun = float(os.environ.get("FLOTILLA_STARTED") or time.time())
    phases = demo.Phases(said)
    phases.seconds["setup"] = round(time.time() - begun, 1)
    with phases("lab"):
        lab.up()
    hosts = demo.serve(settings, phases)
    told = demo.perform(settings, phases, sleep=time.sleep)
    return {
        "seconds": round(time.time() - begun, 1),
        "phases": phases.seconds,
        "url": told.pop("url"),
        "hosts": hosts,
    } | told


class _Lab:
    """The lab, for a run that takes it down again only if nobody had it up before."""

    def __init__(self) -> None:
        self._is_ours = False

    def up(self) -> None:
        """Start it, or use the one that is up."""
        from lab import control
        from lab.layout import layout

        answer = self._tried(
            lambda: control.up(layout(), lambda step: said(f"{step['step']} ... ok"))
        )
        self._is_ours = not answer["already"]

    def leave(self) -> None:
        """After an interruption."""
        from lab import control
        from lab.layout import layout

        if not self._is_ours:
            said("Interrupted: the lab was up before and stays. Next: make demo, or make clean")
            return
        said("Interrupted: taking the lab down")
        self._tried(lambda: control.down(layout()))

    @staticmethod
    def _tried(act: Any) -> Any:
        """The lab's own errors, which know nothing of ours, with their exit codes."""
        from lab.errors import LabError

        try:
            return act()
        except LabError as error:
            raise Exit(str(error), code=error.exit_code) from error


def _figures(told: dict[str, Any]) -> str:
    requests, rolled, moved = told["requests"], told["deploy"], told["switchover"]
    lines = (
        ("deploy", "served {served}, failed {failed}, {seconds:.0f} s", rolled),
        (
            "switchover",
            "{old} -> {new}: {write_gap_seconds:.2f} s without a write, {acked} acked, {lost} lost",
            moved,
        ),
        ("clients", "served {served}, failed {failed}, p99 {p99_ms:.0f} ms", requests),
        ("all", "{seconds:.0f} s; figures in var/demo.json", told),
    )
    return "\n".join(
        [
            "",
            *(f"{name:11} {words.format(**figures)}" for name, words, figures in lines),
            "",
            f"Open {told['url']}/   Next: . .venv/bin/activate; fab fleet.status; fab --list",
            "make clean takes the lab away",
        ]
    )

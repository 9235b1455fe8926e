"""Load balancers: who has the address, move it, the maintenance page, certificates, updates."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, ended, said, show, typed


@task(help=JSON)
def status(_: Context, *, json: bool = False) -> None:
    """Show who has the address, who could take it over, and what is wrong.

    Changes nothing. Exit 0 whatever it finds, 4 the API or the bastion does not answer.
    """
    from flotilla import config
    from flotilla.lb import operate

    settings = attempt(config.load, json=json)
    found = attempt(lambda: operate.seen(settings), json=json)
    show(found, json=json, text=_board(found))


@task(
    help={
        "source": "move it away from this one, if it is there (default: from who has it)",
        **YES,
        **JSON,
    }
)
def failover(
    _: Context, source: str | None = None, *, yes: bool = False, json: bool = False
) -> None:
    """Move the address to the other load balancer, before working on the one that has it.

    Open connections are cut; the move takes a second in the lab, 5 to 6 s on AWS. Exit 0 done or
    nothing to do, 2 it did not move, 3 refused and nothing changed, 4 unreachable, 5 no such host.
    """
    from flotilla import config
    from flotilla.lb import operate

    settings = attempt(config.load, json=json)
    again = typed("lb.failover", source=source)
    done = attempt(
        lambda: operate.failover(
            settings,
            source,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{done['new']} has the address" if done["changed"] else "it is not there"
    show(done, json=json, text=text)


@task(
    help={
        "on": "answer all requests with the page",
        "off": "serve clients again",
        "reason": "why; whoever looks at the fleet meanwhile reads it, clients do not",
        **YES,
        **JSON,
    }
)
def maintenance(
    _: Context,
    *,
    on: bool = False,
    off: bool = False,
    reason: str = "",
    yes: bool = False,
    json: bool = False,
) -> None:
    """Put up the maintenance page, or take it down: on both load balancers or on none.

    Requests are answered 503 with Retry-After, but for the health page. It outlives a reload, and a
    move of the address. Nothing is reloaded and no connection is cut. Exit 0 done or nothing to do,
    2 one could not be told and the other is as it was, 3 refused and nothing changed, 4
    unreachable, 5 neither or both of --on and --off.
    """
    from flotilla import config
    from flotilla.errors import BadOption
    from flotilla.lb import maintenance as page

    settings = attempt(config.load, json=json)
    if on == off:
        wrong = BadOption(
            "say --on or --off, one of them",
            untouched="Nothing was changed",
            next="fab lb.maintenance --on --reason <text>",
        )
        raise ended(wrong, json=json)
    again = typed("lb.maintenance", on=on, off=off, reason=reason)
    done = attempt(
        lambda: page.change(
            settings,
            on=on,
            reason=reason,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = "clients get the maintenance page" if done["on"] else "clients are served"
    show(done, json=json, text=text if done["changed"] else f"nothing to do: {text}")


@task(help={"order": "have a new one ordered by ACME now, and served by both", **YES, **JSON})
def certificate(_: Context, *, order: bool = False, yes: bool = False, json: bool = False) -> None:
    """Show what is served on port 443, by whom it was issued and how long it lasts; or order anew.

    Renewal needs no command: with fleet.lb.acme the load balancers do it by themselves. Loading a
    new one reloads nothing and cuts no connection. Exit 0 whatever is found or when it is served, 2
    no new one was given and the old one goes on, 3 refused and nothing changed, 4 unreachable.
    """
    from flotilla import config
    from flotilla.lb import certificate as operate

    settings = attempt(config.load, json=json)
    if not order:
        found = attempt(lambda: operate.seen(settings), json=json)
        show(found, json=json, text=_certificates(found))
        return
    again = typed("lb.certificate", order=order)
    done = attempt(
        lambda: operate.order(
            settings, confirmed=lambda plan: confirm(plan, yes=yes, again=again), said=said
        ),
        json=json,
    )
    show(done, json=json, text=f"{' and '.join(done['hosts'])} serve certificate {done['new']}")


@task(help={"restart": "restart both, whether they need it or not", **YES, **JSON})
def patch(_: Context, *, restart: bool = False, yes: bool = False, json: bool = False) -> None:
    """Upgrade HAProxy, keepalived and their libraries: first the one without the address.

    The address moves once, before the one that has it is worked on, and that cuts open connections.
    Upgraded is also what HAProxy is linked with, libssl above all, and restarted whatever runs a
    file that was replaced. Exit 0 done or nothing to do, 2 one did not come back and the rest was
    left alone, 3 refused and nothing changed, 4 unreachable.
    """
    from flotilla import config
    from flotilla.lb import operate_maintain

    settings = attempt(config.load, json=json)
    again = typed("lb.patch", restart=restart)
    done = attempt(
        lambda: operate_maintain.patch(
            settings,
            restart=restart,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    show(done, json=json, text=_patched(done))


def _patched(done: dict[str, Any]) -> str:
    if not done["changed"]:
        return "nothing to do"
    text = f"{', '.join(done['hosts'])} done in {sum(done['seconds'].values()):.0f} s"
    moved = " (it moved)" if done["moved"] else ""
    return f"{text}; {done['owner']} has the address{moved}"


def _board(found: dict[str, Any]) -> str:
    lines = [f"{'name':10} {'zone':16} {'fit':5} address"]
    for one in found["members"]:
        fit, here = "yes" if one["fit"] else "NO", "here" if one["owner"] else "-"
        lines.append(f"{one['name']:10} {one['zone']:16} {fit:5} {here}")
    lines += [f"! {problem}" for problem in found["problems"]] or ["all is well"]
    return "\n".join(lines)


def _certificates(found: dict[str, Any]) -> str:
    lines = [f"{'name':10} {'days left':>9}  {'serial':20} issued by"]
    for member in found["members"]:
        for one in member["certificates"]:
            days, who = f"{one['days_left']:.0f}", f"{one['issuer']} for {one['names']}"
            lines.append(f"{member['name']:10} {days:>9}  {one['serial'][:20]:20} {who}")
    if found["acme"] is None:
        lines.append("nobody orders new ones: fleet.lb.acme is null")
    lines += sorted({_next_order(one) for one in found["members"] if one["order_at"]})
    lines += [f"! {problem}" for problem in found["problems"]]
    return "\n".join(lines)


def _next_order(member: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(member["order_at"], UTC)
    return f"the next one is ordered on {when:%Y-%m-%d at %H:%M} UTC: {member['order']}"

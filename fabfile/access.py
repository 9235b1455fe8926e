"""Who may log in: certificates for some hours, given out, taken back and looked through."""

from __future__ import annotations

from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show, typed
from flotilla.words import counted


@task(
    positional=["name"],
    help={
        "name": "whom; the name that logs show",
        "key": "the file of their public key (.pub); a token's is ed25519-sk",
        "hours": "how long, 1 to 168 (default 8)",
        "principal": "what for (default ops: the operators' account, on every host but bastions)",
        **YES,
        **JSON,
    },
)
def grant(
    _: Context,
    name: str,
    key: str,
    hours: int = 8,
    principal: str = "ops",
    *,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Let somebody in for some hours: sign their key, and write what they need to log in.

    No host is changed: all of them trust the CA. Exit 0 done, 3 refused and nothing changed, 4 the
    API does not answer, 5 bad name, key, hours or principal.
    """
    from flotilla import config
    from flotilla.access import operate

    settings = attempt(config.load, json=json)
    again = typed("access.grant", name, key=key, hours=hours, principal=principal)
    done = attempt(
        lambda: operate.grant(
            settings,
            name,
            key,
            hours=hours,
            principal=principal,
            confirmed=lambda plan: confirm(plan, yes=yes, again=again),
            said=said,
        ),
        json=json,
    )
    text = f"{name} may log in until {done['until']} (serial {done['serial']})"
    show(done, json=json, text=f"{text}. Give them {done['folder']}, which holds no secret")


@task(positional=["name"], help={"name": "whom: all of their certificates", **YES, **JSON})
def revoke(_: Context, name: str, *, yes: bool = False, json: bool = False) -> None:
    """Take back what somebody was granted. Every host is told, and asked whether it knows.

    Sessions that are open stay open: `fab fleet.run 'who'`. Exit 0 every host refuses it, 2 it is
    revoked and the named hosts did not confirm that yet, 3 refused (nothing to revoke), 4 the API
    does not answer.
    """
    from flotilla import config
    from flotilla.access import operate

    settings = attempt(config.load, json=json)
    done = attempt(
        lambda: operate.revoke(
            settings,
            name,
            confirmed=lambda plan: confirm(plan, yes=yes, again=typed("access.revoke", name)),
            said=said,
        ),
        json=json,
    )
    text = f"{counted(len(done['hosts']), 'host')} refuse {name}'s certificates"
    show(done, json=json, text=text)


@task(name="list", help={"all": "those that ended or were revoked, too", **JSON})
def list_(_: Context, *, all: bool = False, json: bool = False) -> None:
    """Show who may log in now, until when, and who let them. Changes nothing.

    Exit 0, 4 the API does not answer.
    """
    from flotilla import config
    from flotilla.access import operate

    settings = attempt(config.load, json=json)
    found = attempt(lambda: operate.listed(settings, every=all), json=json)
    lines = [
        f"{one['serial']:>6} {one['name']:16} {one['principal']:6} {one['state']:8}"
        f" until {one['until'][:19]}  by {one['by']}"
        for one in found
    ]
    show(found, json=json, text="\n".join(lines) or "nobody may log in by certificate")


@task(help={"hours": "how far back (default 24)", **JSON})
def audit(_: Context, hours: int = 24, *, json: bool = False) -> None:
    """Show who logged in where, what nobody was granted, and what hosts refused: from their logs.

    Hosts that are no more are not looked for: their logs are in CloudWatch Logs. Exit 0 every login
    is explained, 1 one is not (the CA's key may be stolen), 2 a host is stopped, did not answer or
    has no journal of all these hours, 4 none answered, 5 bad option.
    """
    from flotilla import config
    from flotilla.access import operate
    from flotilla.options import within

    settings = attempt(config.load, json=json)

    def act() -> dict[str, Any]:
        within("--hours", hours, 1, 24 * 366)
        return operate.audited(settings, hours=hours)

    found = attempt(act, json=json)
    show(found, json=json, text=_told(found))
    if found["problems"]:
        raise Exit(code=1)
    if found["silent"]:
        raise Exit(code=2)


def _told(found: dict[str, Any]) -> str:
    """Logins by certificate one by one; those of the fleet's own key are many, and counted."""
    people = [one for one in found["logins"] if one["serial"] is not None]
    lines = [
        f"{one['at'][:19]} {one['host']:10} {one['name']} (serial {one['serial']})"
        f" as {one['account']} from {one['from']}"
        for one in people
    ]
    keys: dict[str, int] = {}
    for one in found["logins"]:
        if one["serial"] is None:
            keys[one["fingerprint"]] = keys.get(one["fingerprint"], 0) + 1
    lines += [f"{counted(count, 'login')} by the key {key}" for key, count in keys.items()]
    lines += [
        f"{one['at'][:19]} {one['host']:10} refused: {one['line']}" for one in found["refused"]
    ]
    lines += [
        f"{one['host']:30} refused {one['times']} times: {one['what']}" for one in found["counted"]
    ]
    lines += [f"problem  {line}" for line in found["problems"]]
    lines += [f"problem  {host} does not tell: {why}" for host, why in found["silent"].items()]
    return "\n".join(lines) or "nobody logged in"

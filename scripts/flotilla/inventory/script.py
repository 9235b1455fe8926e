"""What ``inventory/<env>/ec2.py`` does when the snapshot alone cannot answer."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from flotilla import config, files
from flotilla.errors import BadOption, FlotillaError
from flotilla.hosts import access
from flotilla.inventory import store
from flotilla.inventory.source import load
from flotilla.options import Parser
from flotilla.settings import Settings
from flotilla.snapshot import Snapshot

# Each new host costs a call to EC2 for its console.
NEW_HOSTS = 64


def main(root: Path, env: str, arguments: list[str]) -> int:
    """Answer Ansible: data on stdout, warnings and errors on stderr; returns the exit code.

    An outage of the EC2 API serves the last snapshot with a warning; without one it is an error.
    """
    options = _parser(env).parse_args(arguments)
    try:
        settings = config.load(env, root=root)
        snapshot = load(settings, refresh=options.refresh)
        listing = store.listing(settings)
        for sentence in filter(None, (snapshot.warning, *snapshot.problems)):
            _say(f"warning: {sentence}")
        _reach(settings, snapshot)
        if options.list:
            _show(listing.decode())
        elif options.host is not None:
            _host(listing, options.host)
        else:
            _say(f"{len(snapshot.hosts)} hosts in {store.path(settings)}")
    except FlotillaError as error:
        _say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        _say(f"error: {files.refused(error)}")
        return FlotillaError.exit_code
    return 0


def _parser(env: str) -> Parser:
    parser = Parser(prog="ec2.py", description=f"Ansible's inventory of environment {env}.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print all groups and hosts as JSON")
    what.add_argument("--host", metavar="NAME", help="print the variables of one host as JSON")
    parser.add_argument("--refresh", action="store_true", help="ask EC2 first, however fresh")
    return parser


def _reach(settings: Settings, snapshot: Snapshot) -> None:
    """Make the ssh_config that the listing points Ansible to fit the listing.

    So that ``ansible-playbook`` by hand reaches what it sees. That a host cannot be reached is for
    the play to find out; the list of hosts is right all the same.
    """
    try:
        unknown = access.prepare(settings, snapshot, seconds=0, most=NEW_HOSTS)
    except FlotillaError as error:
        _say(f"warning: {error}")
        return
    if unknown:
        names = ", ".join(host.name for host in unknown[:5])
        _say(f"warning: {len(unknown)} hosts have not shown their host keys yet: {names}")


def _host(listing: bytes, name: str) -> None:
    variables = json.loads(listing)["_meta"]["hostvars"]
    if name not in variables:
        raise BadOption(f"there is no active host {name!r}", next="fab fleet.status")
    _show(json.dumps(variables[name], indent=2))


def _show(text: str) -> None:
    """Print what was asked for, to its end: an error on the way out would be a traceback."""
    if sys.stdout is None:
        raise FlotillaError("stdout is closed; there is nowhere to write the hosts to")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise FlotillaError(
            f"the hosts could not be written to stdout: {error.strerror}"
        ) from error


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")

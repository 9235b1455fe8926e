"""Errors the lab shows to its user: what happened, why it matters, what to type next."""

# A prerequisite is unmet, a lab is not up: the names say what is so, not that it is an error.
# ruff: noqa: N818

from __future__ import annotations


class LabError(Exception):
    """Something the operator must do something about. `str()` is the whole message."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", next_command: str = "") -> None:
        self.what, self.why, self.next_command = what, why, next_command
        parts = [what.rstrip(".") + "."]
        if why:
            parts.append(why.rstrip(".") + ".")
        if next_command:
            parts.append(f"Next: {next_command}")
        super().__init__(" ".join(parts))

    def as_dict(self) -> dict[str, str | int]:
        """The same for ``--json``: kind, exit_code, what, why, next."""
        return {
            "kind": type(self).__name__,
            "exit_code": self.exit_code,
            "what": self.what,
            "why": self.why,
            "next": self.next_command,
        }


class Unmet(LabError):
    """A prerequisite is missing; nothing was changed."""

    exit_code = 3


class NotUp(LabError):
    """No lab answers."""

    exit_code = 4


class NoSuchHost(LabError):
    """No instance is called so, or more than one is."""

    exit_code = 5


class HostNotRunning(LabError):
    """The instance has no running host."""

    exit_code = 2

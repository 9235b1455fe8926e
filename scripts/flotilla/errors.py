"""What can go wrong, as one clear message and one exit code each.

A message has four parts: what happened (with the values), why it matters, what is untouched, and
the command to type next. Exit codes follow Ansible's where the two meet.
"""

from __future__ import annotations

# The names say what happened to a command ("refused", "unreachable"), as its messages do.
# ruff: noqa: N818

INTERRUPTED = 99


class FlotillaError(Exception):
    """Our own fault, or one we could not place: exit 1.

    ``what`` names the thing and the values; ``why``, ``untouched`` and ``next`` may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", untouched: str = "", next: str = "") -> None:  # noqa: A002
        super().__init__(what, why, untouched, next)
        self.what = what
        self.why = why
        self.untouched = untouched
        self.next = next

    def __str__(self) -> str:
        parts = [_sentence(part) for part in (self.what, self.why, self.untouched) if part]
        if self.next:
            parts.append(f"Next: {self.next}")
        # A list of several lines is followed by a line of its own.
        return ("\n" if "\n" in self.what else " ").join(parts)

    def as_dict(self) -> dict[str, str | int]:
        """The same for ``--json``: kind, exit_code, what, why, untouched, next."""
        return {
            "kind": type(self).__name__,
            "exit_code": self.exit_code,
            "what": self.what,
            "why": self.why,
            "untouched": self.untouched,
            "next": self.next,
        }


class HostFailed(FlotillaError):
    """A host was reached and could not do what it was told: exit 2."""

    exit_code = 2


class Refused(FlotillaError):
    """A safety check or bad input stopped us, and nothing was changed: exit 3."""

    exit_code = 3


class Unreachable(FlotillaError):
    """A host or an API did not answer: exit 4."""

    exit_code = 4


class BadOption(FlotillaError):
    """The command line asked for something that does not exist: exit 5."""

    exit_code = 5


def exit_code(error: BaseException | None) -> int:
    """The process exit code for how a command ended; ``None`` is success."""
    if error is None:
        return 0
    if isinstance(error, FlotillaError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return 1


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."

"""What both load balancers share, in SSM: the certificate, the authority's tokens, the attempts.

Below ``/<fleet>/<env>/lb/``. ``certificate`` is the PEM text, ``acme/account`` the account's key,
``acme/pending`` an order that was finished at the authority and not yet here; these are
SecureStrings. ``acme/tokens``, ``acme/attempts`` and ``acme/request`` are no secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flotilla.aws.lean import Api, parameters
from flotilla.errors import FlotillaError
from flotilla.rules.acme import Attempts, Request, Tokens

_SECRET = frozenset({"certificate", "acme/account", "acme/pending"})
_ALWAYS = ("certificate", "acme/tokens", "acme/attempts", "acme/request")


@dataclass(frozen=True, slots=True)
class Shared:
    """What SSM has at one moment; ``certificate`` is "" for none."""

    certificate: str
    tokens: Tokens
    attempts: Attempts
    request: Request


class Store:
    """The parameters of one fleet. Every method raises FlotillaError when SSM does not do it."""

    def __init__(self, api: Api, fleet: str, env: str) -> None:
        self._api = api
        self._above = f"/{fleet}/{env}/lb/"

    def read(self) -> Shared:
        """All that is looked at all the time, in one call."""
        found = self._get(*_ALWAYS)
        tokens = self._json(found, "acme/tokens")
        try:
            return Shared(
                found.get("certificate", ""),
                Tokens(tokens.get("answers", {}), tokens.get("until", 0.0)),
                Attempts(**self._json(found, "acme/attempts")),
                Request(**self._json(found, "acme/request")),
            )
        except TypeError as error:
            raise FlotillaError(f"SSM below {self._above}acme is not of ours: {error}") from None

    def secret(self, name: str) -> str:
        """``acme/account`` or ``acme/pending``; "" for none."""
        found = self._get(name).get(name, "")
        return "" if found == "{}" else found

    def put(self, name: str, value: str | Tokens | Attempts | Request) -> None:
        """Store a value in place of the one before. An empty text is stored as ``{}``."""
        text = value if isinstance(value, str) else json.dumps(asdict(value))
        self._api.json(
            "ssm",
            "PutParameter",
            {
                "Name": self._above + name,
                "Value": text or "{}",
                "Type": "SecureString" if name in _SECRET else "String",
                "Overwrite": True,
                # A chain may be longer than the 4 KB of a standard parameter.
                "Tier": "Intelligent-Tiering",
            },
        )

    def _get(self, *names: str) -> dict[str, str]:
        return parameters(self._api, {self._above + name: name for name in names})

    def _json(self, found: Mapping[str, str], name: str) -> dict[str, Any]:
        try:
            value = json.loads(found.get(name, "{}"))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise FlotillaError(
                f"{self._above}{name} in SSM is no JSON object",
                next=f"aws ssm delete-parameter --name {self._above}{name}",
            )
        return value

"""Order one certificate of an ACME authority (RFC 8555), proved by HTTP-01 on every load balancer.

Killed anywhere, nothing is half-done: what the authority answers with is served by both load
balancers until it is over, and an order that was finished at the authority but not here is fetched
by the next attempt, so it does not count twice there.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import requests
from acme import challenges, client, crypto_util, errors, messages
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from flotilla.certificate import pem
from flotilla.certificate.store import Store
from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.rules import acme as rules
from flotilla.rules.acme import Issued, Tokens

# How long an authority may take to look, and to sign.
LOOK_SECONDS = 120.0
SIGN_SECONDS = 120.0
# For one that a killed attempt left: it is there at once, or it was never finished.
FETCH_SECONDS = 10.0
# How long load balancers may take to serve a token, and for how long they do at the most.
SERVED_SECONDS = 60.0
TOKEN_SECONDS = 600.0
ANSWER_SECONDS = 3.0
# What somebody in front of the load balancers (fleet with PROXY headers) says first.
PROXIED = b"PROXY UNKNOWN\r\n"

log = logging.getLogger("flotilla.certificate")

# Whatever the library and what it stands on raise for an authority that fails us.
_FAILURES = (
    errors.Error,
    JoseError,
    requests.RequestException,
    ValueError,
    KeyError,
)


class LimitedError(HostFailed):
    """The authority says that it is asked too often."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs: its directory's URL, and our e-mail address there. Its terms are agreed to."""

    directory: str
    email: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a load balancer answers clients on port 80, and whether it wants a PROXY header."""

    name: str
    address: str
    port: int = 80
    is_proxied: bool = False


class Orderer:
    """Orders for one name. ``places`` are the load balancers of now, this one first."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        domain: str,
        places: Callable[[], list[Place]],
        *,
        step: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._authority, self._domain = store, authority, domain
        self._places, self._step = places, step
        self._now, self._clock, self._sleep = now, clock, sleep

    def run(self) -> Issued:
        """Order, prove, fetch, check and store: what the new certificate says.

        Raises LimitedError, HostFailed for any other refusal, Refused for a certificate that is not
        what was ordered; the stored one is then as it was.
        """
        try:
            return self._run()
        except _FAILURES as error:
            kind = LimitedError if _is_limit(error) else HostFailed
            raise kind(f"{self._authority.directory}: {told(error)}") from error

    def _run(self) -> Issued:
        self._step("account")
        authority = self._signed_in()
        left = self._left(authority)
        return self._kept(*left) if left else self._fresh(authority)

    def _fresh(self, authority: client.ClientV2) -> Issued:
        key = pem.new_key()
        self._step("order")
        order = authority.new_order(crypto_util.make_csr(key, [self._domain]))
        try:
            self._prove(authority, order)
            self._step("finalize")
            self._store.put("acme/pending", json.dumps({"uri": order.uri, "key": key.decode()}))
            authority.begin_finalization(order)
            self._step("fetch")
            signed = authority.poll_finalization(order, _until(SIGN_SECONDS))
        finally:
            self._store.put("acme/tokens", Tokens({}, 0.0))
        return self._kept(signed.fullchain_pem, key)

    def _signed_in(self) -> client.ClientV2:
        text = self._store.secret("acme/account")
        if not text:
            text = pem.new_key().decode()
            # First: an account whose key is lost is an account of nobody.
            self._store.put("acme/account", text)
        key = JWKEC.load(text.encode())
        net = client.ClientNetwork(key, alg=ES256, user_agent="flotilla")
        found = client.ClientV2(
            client.ClientV2.get_directory(self._authority.directory, net), net=net
        )
        asked = messages.NewRegistration.from_data(
            email=self._authority.email, terms_of_service_agreed=True
        )
        try:
            found.new_account(asked)
        except errors.ConflictError as known:
            net.account = messages.RegistrationResource(body=asked, uri=known.location)
        return found

    def _left(self, authority: client.ClientV2) -> tuple[str, bytes] | None:
        """The chain and key of an order that an attempt before this one finished; None for none."""
        text = self._store.secret("acme/pending")
        if not text:
            return None
        self._step("fetch what is left")
        kept = json.loads(text)
        key = kept["key"].encode()
        order = messages.OrderResource(body=messages.Order(), uri=kept["uri"], authorizations=())
        try:
            signed = authority.poll_finalization(order, _until(FETCH_SECONDS))
            found = pem.read(pem.joined(signed.fullchain_pem, key))
        except (*_FAILURES, FlotillaError) as error:
            log.info("the order before this one was not finished: %s", told(error))
            return None
        is_new = rules.renewal_at(found) > self._now()
        return (signed.fullchain_pem, key) if is_new else None

    def _prove(self, authority: client.ClientV2, order: messages.OrderResource) -> None:
        """Have the authority see an answer of ours. Raises what the library does, HostFailed."""
        wanted = {}
        for one in order.authorizations:
            if one.body.status == messages.STATUS_VALID:
                continue
            offered = (c for c in one.body.challenges if isinstance(c.chall, challenges.HTTP01))
            challenge = next(offered, None)
            if challenge is None:
                raise Refused(f"the authority offers no HTTP-01 for {one.body.identifier.value}")
            answer, text = challenge.response_and_validation(authority.net.key)
            wanted[challenge.chall.path] = (challenge, answer, text)
        if not wanted:
            return
        answers = {path: text for path, (_, _, text) in wanted.items()}
        self._step("token")
        self._store.put("acme/tokens", Tokens(answers, self._now() + TOKEN_SECONDS))
        self._step("served")
        self._demand_served(answers)
        self._step("answer")
        for challenge, answer, _ in wanted.values():
            authority.answer_challenge(challenge, answer)
        self._step("validated")
        authority.poll_authorizations(order, _until(LOOK_SECONDS))

    def _demand_served(self, answers: Mapping[str, str]) -> None:
        """Wait until every load balancer gives the answers: the address may move any moment.

        One that nobody can connect to has no clients either, and is no reason to let the
        certificate run out. Raises HostFailed for one that answers something else.
        """
        deadline = self._clock() + SERVED_SECONDS
        while problems := self._unserved(answers):
            if self._clock() >= deadline:
                break
            self._sleep(1.0)
        wrong = {name: why for name, (is_silent, why) in problems.items() if not is_silent}
        first = self._places()[0].name
        if wrong or first in problems:
            said = "; ".join(f"{name}: {why}" for name, (_, why) in problems.items())
            raise HostFailed(
                f"the authority was not asked to look, because it would not be answered: {said}"
            )
        for name, (_, why) in problems.items():
            log.warning("%s is left out: %s", name, why)

    def _unserved(self, answers: Mapping[str, str]) -> dict[str, tuple[bool, str]]:
        """By load balancer that does not give the answers: whether it is silent, and why."""
        found = {}
        for place in self._places():
            for path, answer in answers.items():
                try:
                    status, body = _asked(place, self._domain, path)
                except (OSError, http.client.HTTPException) as error:
                    found[place.name] = (True, str(error) or type(error).__name__)
                    break
                if status != http.HTTPStatus.OK or body != answer:
                    found[place.name] = (False, f"GET {path} on port {place.port}: {status}")
        return found

    def _kept(self, chain: str, key: bytes) -> Issued:
        text = pem.joined(chain, key)
        found = pem.read(text)
        if why := rules.unfit(found, self._domain, self._now()):
            self._store.put("acme/pending", "")
            raise Refused(
                f"{self._authority.directory} gave a certificate that is {why}",
                untouched="The certificate that is served stays",
            )
        self._step("store")
        self._store.put("certificate", text)
        self._step("forget")
        self._store.put("acme/pending", "")
        return found


def told(error: BaseException) -> str:
    """What the authority said, or what kept us from hearing it, in one sentence."""
    if isinstance(error, errors.ValidationError):
        problems = [c.error for one in error.failed_authzrs for c in one.body.challenges if c.error]
        return "; ".join(dict.fromkeys(_problem(one) for one in problems))
    if isinstance(error, errors.IssuanceError):
        return _problem(error.error)
    if isinstance(error, messages.Error):
        return _problem(error)
    if isinstance(error, errors.TimeoutError):
        return "it did not come to an end in time"
    if isinstance(error, FlotillaError):
        return error.what
    return f"{type(error).__name__}: {error}".splitlines()[0][:400]


def _problem(error: messages.Error) -> str:
    return f"{error.code or error.typ}: {error.detail}"[:400]


def _is_limit(error: BaseException) -> bool:
    return isinstance(error, messages.Error) and error.code == "rateLimited"


def _until(seconds: float) -> datetime:
    # The library compares it with a naive datetime.now().
    return datetime.now() + timedelta(seconds=seconds)  # noqa: DTZ005


def _asked(place: Place, domain: str, path: str) -> tuple[int, str]:
    """Status and body of GET ``path``, as the authority would ask. Raises OSError."""
    connection = http.client.HTTPConnection(place.address, place.port, timeout=ANSWER_SECONDS)
    try:
        connection.sock = socket.create_connection((place.address, place.port), ANSWER_SECONDS)
        if place.is_proxied:
            connection.sock.sendall(PROXIED)
        connection.request("GET", path, headers={"Host": domain})
        answer = connection.getresponse()
        return answer.status, answer.read(4096).decode(errors="replace").strip()
    finally:
        connection.close()

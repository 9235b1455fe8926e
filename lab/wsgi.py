"""The API as one WSGI application: moto's services, the lab's own control paths, and a record of
every call.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from lab import rights
from lab.identity import role_of
from lab.outage import gate

Respond = Callable[..., Any]
_READS = re.compile(r"(Describe|Get|List|Head|BatchGet|Query|Scan|Search|Lookup|Assume|Simulate)")
_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/[^/]+/([^/]+)/([^/]+)/")
# These act on one another's state inside moto (Auto Scaling launches instances), so they take turns
# together.
_TOGETHER = dict.fromkeys(("ec2", "autoscaling", "iam", "sts", "elasticloadbalancing"), "ec2")

_MAY_CHANGE_HOSTS = frozenset({"ec2", "autoscaling"})


class Calls:
    """One lock for each family of services.

    moto keeps its state in plain dictionaries and takes requests in threads: without taking turns,
    two conditional writes to one DynamoDB item can both succeed, and a lease would have two
    holders.
    """

    def __init__(self) -> None:
        self._locks: dict[str, threading.RLock] = defaultdict(threading.RLock)

    def lock(self, service: str) -> threading.RLock:
        """The lock under which requests to `service` run."""
        return self._locks[_TOGETHER.get(service, service)]


class Call:
    """What one request asks, read from its signature and body."""

    def __init__(self, environ: Mapping[str, Any], body: bytes) -> None:
        match = _CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
        self.access_key = match.group(1) if match else ""
        self.region = match.group(2) if match else ""
        self.service = match.group(3) if match else "unsigned"
        self.action = _action(environ, body)

    @property
    def is_read(self) -> bool:
        """Whether the action cannot have changed anything."""
        return bool(_READS.match(self.action))


def _action(environ: Mapping[str, Any], body: bytes) -> str:
    target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
    if target:
        return target.rpartition(".")[2]
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
    return f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '')}"


class Api:
    """WSGI: dispatches to moto or to the control paths.

    `denied(role, action, region, body)` names the parameter that keeps a role from a call of SSM.
    `changed()` is called after every action that may have changed EC2's state, before the answer
    goes out: what an answer says is already true on the network.
    """

    def __init__(
        self,
        moto: Any,
        control: Callable[[str, str, bytes], tuple[int, Mapping[str, Any]]],
        calls: Calls,
        changed: Callable[[], None],
        record: Callable[[Mapping[str, Any]], None],
        *,
        denied: Callable[[str, str, str, bytes], str] = lambda *_: "",
    ) -> None:
        self._moto, self._control, self._calls = moto, control, calls
        self._changed, self._record, self._denied = changed, record, denied

    def __call__(self, environ: dict[str, Any], start_response: Respond) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "")
        body = _body(environ)
        if path.startswith("/_lab/"):
            return self._controlled(environ, body, start_response)
        if path.startswith("/moto-api"):
            return _json(start_response, 404, {"error": "not part of the lab's API"})
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        call = Call(environ, body)
        refused = gate.refuse((call.service, call.action), environ, start_response)
        if refused is None:
            refused = self._unauthorized(call, environ, body, start_response)
        return self._aws(call, environ, start_response) if refused is None else refused

    def _unauthorized(
        self, call: Call, environ: dict[str, Any], body: bytes, start_response: Respond
    ) -> Iterable[bytes] | None:
        """The answer to a host that may not have this parameter; None for everybody else."""
        role = role_of(call.access_key)
        if role is None or call.service != "ssm":
            return None
        resource = self._denied(role, call.action, call.region, body)
        if not resource:
            return None
        self._note(call, environ, 400, error=rights.ERROR, resource=resource)
        return _json(start_response, 400, rights.answer(role, call.action, resource))

    def _note(
        self, call: Call, environ: Mapping[str, Any], status: int | None, **more: object
    ) -> None:
        self._record(
            {
                "time": round(time.time(), 3),
                "service": call.service,
                "action": call.action,
                "access_key": call.access_key,
                "role": role_of(call.access_key),
                "source": environ.get("REMOTE_ADDR"),
                "status": status,
                **more,
            }
        )

    def _aws(self, call: Call, environ: dict[str, Any], start_response: Respond) -> Iterable[bytes]:
        began = time.monotonic()
        status: list[int] = []

        def started(line: str, headers: Any, exc_info: Any = None) -> Any:
            status.append(int(line.split(maxsplit=1)[0]))
            return (
                start_response(line, headers, exc_info)
                if exc_info
                else start_response(line, headers)
            )

        with self._calls.lock(call.service):
            answer = self._moto(environ, started)
            chunks = list(answer)
            if hasattr(answer, "close"):
                answer.close()
        if call.service in _MAY_CHANGE_HOSTS and not call.is_read:
            self._changed()
        took = round((time.monotonic() - began) * 1000, 1)
        self._note(call, environ, status[-1] if status else None, ms=took)
        return chunks

    def _controlled(
        self, environ: dict[str, Any], body: bytes, start_response: Respond
    ) -> Iterable[bytes]:
        if not str(environ.get("REMOTE_ADDR", "")).startswith("127."):
            return _json(
                start_response,
                403,
                {"error": "the control paths are for the machine's operator only"},
            )
        verb = environ["PATH_INFO"].removeprefix("/_lab/")
        status, answer = self._control(environ["REQUEST_METHOD"], verb, body)
        return _json(start_response, status, answer)


def _body(environ: Mapping[str, Any]) -> bytes:
    """The whole request body, so that a slow upload never holds a service's lock."""
    stream = environ["wsgi.input"]
    if environ.get("CONTENT_LENGTH"):
        return bytes(stream.read(int(environ["CONTENT_LENGTH"])))
    return bytes(stream.read()) if environ.get("wsgi.input_terminated") else b""


def _json(start_response: Respond, status: int, answer: Mapping[str, Any]) -> list[bytes]:
    body = json.dumps(answer).encode() + b"\n"
    start_response(
        f"{status} -", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    )
    return [body]

"""The few AWS calls a database host makes, with nothing but Python's own library.

boto3 alone takes 27 MiB, and a watcher may take 40 in all. One attempt a call: whoever needs the
answer asks again, and knows better when. Safe to use from threads.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree as ET

from flotilla.aws.items import Change, ChangedError, Item, no_table
from flotilla.aws.signature import Keys, signed
from flotilla.errors import FlotillaError, Refused, Unreachable

ANSWER_SECONDS = 2.0
_JSON = {"dynamodb": ("1.0", "DynamoDB_20120810"), "ssm": ("1.1", "AmazonSSM")}
_QUERY = {"ec2": "2016-11-15", "monitoring": "2010-08-01"}
# A value, and its unit as CloudWatch names it.
Metric = tuple[float, str]
# What a proxy or a server does to a connection that lay idle; the request was not looked at.
_STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class AnswerError(FlotillaError):
    """AWS refused a call; ``code`` is its own word for why."""

    def __init__(self, what: str, code: str) -> None:
        super().__init__(what)
        self.code = code


class Api:
    """Calls in one region, signed with what ``keys`` returns at that moment."""

    def __init__(
        self,
        region: str,
        keys: Callable[[], Keys],
        *,
        endpoint_url: str | None = None,
        now: Callable[[], float] = time.time,
        seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.region = region
        self._keys = keys
        self._endpoint_url = endpoint_url
        self._now = now
        self._seconds = seconds
        self._open = threading.local()

    def json(self, service: str, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of DynamoDB or SSM. Raises AnswerError, or Unreachable without an answer."""
        version, target = _JSON[service]
        headers = {
            "Content-Type": f"application/x-amz-json-{version}",
            "X-Amz-Target": f"{target}.{action}",
        }
        status, body = self._post(service, headers, json.dumps(request).encode())
        try:
            answer: dict[str, Any] = json.loads(body or b"{}")
        except ValueError:
            raise self._silent(service, f"HTTP {status}: {body[:100]!r}") from None
        if status == http.HTTPStatus.OK:
            return answer
        code = str(answer.get("__type", "")).rpartition("#")[2]
        said = answer.get("message") or answer.get("Message") or ""
        raise self._refused(service, action, status, code, str(said))

    def ec2(self, action: str, request: Mapping[str, str]) -> ET.Element:
        """EC2's answer. Raises as ``json``."""
        return self._query("ec2", action, request)

    def s3_object(self, bucket: str, key: str, etag: str = "") -> tuple[str, bytes] | None:
        """An object of S3 with its ETag; None while it is the one that ``etag`` names.

        Raises as ``json``; the code of one that is not there is "404", or "403" where the caller
        may not list the bucket.
        """
        # Hash of an empty body: S3 wants to be told, in a header that is signed.
        nothing = hashlib.sha256(b"").hexdigest()
        headers = {"X-Amz-Content-Sha256": nothing} | ({"If-None-Match": etag} if etag else {})
        base = self._endpoint_url or _endpoint("s3", self.region)
        url = f"{base.rstrip('/')}/{bucket}/{key}"
        status, body, sent = self._send("s3", url, headers, b"", method="GET")
        if status == http.HTTPStatus.NOT_MODIFIED:
            return None
        if status != http.HTTPStatus.OK:
            raise self._refused("s3", f"GetObject {key}", status, str(status), "")
        return sent.get("etag", ""), body

    def put_metrics(
        self, namespace: str, dimensions: Mapping[str, str], metrics: Mapping[str, Metric]
    ) -> None:
        """Store one value each in CloudWatch. Raises as ``json``."""
        request = {"Namespace": namespace}
        for number, (name, (value, unit)) in enumerate(metrics.items(), 1):
            row = f"MetricData.member.{number}"
            request |= {f"{row}.MetricName": name, f"{row}.Value": repr(value), f"{row}.Unit": unit}
            for place, (key, text) in enumerate(dimensions.items(), 1):
                pair = f"{row}.Dimensions.member.{place}"
                request |= {f"{pair}.Name": key, f"{pair}.Value": text}
        self._query("monitoring", "PutMetricData", request)

    def _query(self, service: str, action: str, request: Mapping[str, str]) -> ET.Element:
        body = urlencode({"Action": action, "Version": _QUERY[service], **request}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        status, text = self._post(service, headers, body)
        try:
            answer = ET.fromstring(text)  # noqa: S314  AWS's answer to a signed request
        except ET.ParseError:
            raise self._silent(service, f"HTTP {status}: {text[:100]!r}") from None
        if status == http.HTTPStatus.OK:
            return answer
        error = answer.find(".//{*}Error")
        found = {} if error is None else {e.tag.rpartition("}")[2]: e.text or "" for e in error}
        raise self._refused(
            service, action, status, found.get("Code", ""), found.get("Message", "")
        )

    def _post(self, service: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        url = self._endpoint_url or _endpoint(service, self.region)
        status, answer, _ = self._send(service, url, headers, body, method="POST")
        return status, answer

    def _send(
        self, service: str, url: str, headers: Mapping[str, str], body: bytes, *, method: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        sent = signed(
            url,
            headers,
            body,
            self._keys(),
            service=service,
            region=self.region,
            now=self._now(),
            method=method,
        )
        try:
            try:
                return self._exchange(method, url, sent, body, fresh=False)
            except _STALE:
                return self._exchange(method, url, sent, body, fresh=True)
        except (OSError, http.client.HTTPException) as error:
            self._drop(url)
            raise self._silent(service, str(error) or type(error).__name__) from None

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, fresh: bool
    ) -> tuple[int, bytes, Mapping[str, str]]:
        if fresh:
            self._drop(url)
        place = urlsplit(url)
        connection = self._connections.get(place.netloc)
        if connection is None:
            connection = self._connections[place.netloc] = _connection(url, self._seconds)
        connection.request(method, place.path or "/", body, dict(headers))
        response = connection.getresponse()
        return (
            response.status,
            response.read(),
            {name.lower(): value for name, value in response.headers.items()},
        )

    @property
    def _connections(self) -> dict[str, http.client.HTTPConnection]:
        if not hasattr(self._open, "connections"):
            self._open.connections = {}
        found: dict[str, http.client.HTTPConnection] = self._open.connections
        return found

    def _drop(self, url: str) -> None:
        connection = self._connections.pop(urlsplit(url).netloc, None)
        if connection:
            connection.close()

    def _refused(
        self, service: str, action: str, status: int, code: str, said: str
    ) -> FlotillaError:
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or "Throttl" in code:
            return self._silent(service, f"{action} answered {code or status} {said}".rstrip())
        return AnswerError(f"{service}: {action} answered {code or status}: {said}", code)

    def _silent(self, service: str, why: str) -> Unreachable:
        where = self._endpoint_url or _endpoint(service, self.region)
        return Unreachable(f"{service} at {where} does not answer: {why}")


class LeanTable:
    """``flotilla.aws.items.Table`` over ``Api``."""

    hint = ""

    def __init__(self, api: Api, name: str, key_name: str, term_name: str) -> None:
        self._api = api
        self.name = name
        self.key_name = key_name
        self.term_name = term_name

    def get(self, key: str) -> Item | None:
        """See ``Table``."""
        item: Item | None = self._call("GetItem", key, {"ConsistentRead": True}).get("Item")
        return item

    def update(self, key: str, change: Change) -> None:
        """See ``Table``."""
        self._call("UpdateItem", key, change.request())

    def _call(self, action: str, key: str, request: Mapping[str, Any]) -> dict[str, Any]:
        place = {"TableName": self.name, "Key": {self.key_name: {"S": key}}}
        try:
            return self._api.json("dynamodb", action, {**place, **request})
        except AnswerError as error:
            if error.code == "ConditionalCheckFailedException":
                raise ChangedError(key) from error
            if error.code == "ResourceNotFoundException":
                raise no_table(self.name) from error
            raise Refused(error.what, untouched="Nothing was changed") from error


def parameters(api: Api, names: Mapping[str, str]) -> dict[str, str]:
    """The values of SSM parameters, by the value that ``names`` gives each name; missing left out.

    Raises AnswerError or Unreachable.
    """
    return {key: value for key, (value, _) in versioned(api, names).items()}


def versioned(api: Api, names: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """The same with each parameter's version, which grows with every write. Raises as well."""
    answer = api.json("ssm", "GetParameters", {"Names": [*names], "WithDecryption": True})
    found = answer.get("Parameters", ())
    return {names[one["Name"]]: (one["Value"], int(one["Version"])) for one in found}


def _connection(url: str, seconds: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    return http.client.HTTPConnection(host, port, timeout=seconds)


def _endpoint(service: str, region: str) -> str:
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://{service}.{region}.{suffix}/"

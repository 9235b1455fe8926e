"""What an instance may know of itself and whose name it may act in: IMDSv2, without boto3."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import urlsplit

from flotilla.aws.signature import Keys
from flotilla.errors import Unreachable

METADATA_URL = "http://169.254.169.254"
TOKEN_SECONDS = 21600
ANSWER_SECONDS = 1.0
# New keys are there at least five minutes before the old ones expire.
EARLY_SECONDS = 300.0
# With keys that still work, a silent metadata service is asked again only after this.
RETRY_SECONDS = 10.0


class OwnRole:
    """The keys of the instance's role, read again before they expire. Safe for threads."""

    def __init__(self, url: str = METADATA_URL, now: Callable[[], float] = time.time) -> None:
        self._host = urlsplit(url).netloc
        self._now = now
        self._guard = threading.Lock()
        self._keys: Keys | None = None
        self._asked = 0.0

    def __call__(self) -> Keys:
        """Keys that work now. Raises Unreachable where there are none."""
        with self._guard:
            keys, now = self._keys, self._now()
            if keys and now < keys.expires_at - EARLY_SECONDS:
                return keys
            if keys and now < keys.expires_at and now < self._asked + RETRY_SECONDS:
                return keys
            self._asked = now
            try:
                self._keys = self._read()
            except (OSError, ValueError, KeyError) as error:
                if keys and now < keys.expires_at:
                    return keys
                raise Unreachable(f"the metadata service gives no credentials: {error}") from None
            return self._keys

    def text(self, path: str) -> str:
        """What the service says at ``/latest/meta-data/<path>``. Raises Unreachable."""
        try:
            return self._get(path)
        except OSError as error:
            raise Unreachable(f"the metadata service does not tell {path}: {error}") from None

    def _read(self) -> Keys:
        folder = "iam/security-credentials/"
        found = json.loads(self._get(folder + self._get(folder).split()[0]))
        expires = datetime.fromisoformat(found["Expiration"])
        return Keys(
            found["AccessKeyId"], found["SecretAccessKey"], found["Token"], expires.timestamp()
        )

    def _get(self, path: str) -> str:
        token = self._ask(
            "PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", str(TOKEN_SECONDS)
        )
        return self._ask("GET", f"/latest/meta-data/{path}", "X-aws-ec2-metadata-token", token)

    def _ask(self, method: str, path: str, header: str, value: str) -> str:
        connection = http.client.HTTPConnection(self._host, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, headers={header: value})
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"{method} {path} answered {answer.status}")
        return text

"""Sign a request to AWS (Signature Version 4), for hosts where boto3 would cost too much memory.

The unit tests compare every header with botocore's own signer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """Credentials. ``expires_at`` is in seconds since the epoch; no repr: not to be logged."""

    access: str
    secret: str
    token: str = ""
    expires_at: float = float("inf")


def signed(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    keys: Keys,
    *,
    service: str,
    region: str,
    now: float,
    method: str = "POST",
) -> dict[str, str]:
    """``headers`` with those that prove who sends this to ``url`` (which has no query).

    A path must be written as S3 takes it: letters, digits and any of ``/ . _ -``.
    """
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    parts = urlsplit(url)
    sent = {**headers, "Host": parts.netloc, "X-Amz-Date": stamp}
    if keys.token:
        sent["X-Amz-Security-Token"] = keys.token
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
    names = ";".join(name for name, _ in lines)
    canonical = "\n".join(
        [
            method,
            parts.path or "/",
            "",
            *(f"{name}:{value}" for name, value in lines),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{keys.secret}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}".encode(), "sha256")
    proof = f"{ALGORITHM} Credential={keys.access}/{scope}, SignedHeaders={names}"
    return {**sent, "Authorization": f"{proof}, Signature={signature.hex()}"}

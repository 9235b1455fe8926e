"""What an agent does while AWS, or its own host, is not ready: it asks again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from flotilla.errors import FlotillaError

RETRY_SECONDS = 2.0
# As for botocore: where the metadata service is.
METADATA = "AWS_EC2_METADATA_SERVICE_ENDPOINT"

log = logging.getLogger("flotilla.agent")

T = TypeVar("T")


def insist(read: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """What ``read`` returns, tried until it does; a new reason is logged once."""
    said = ""
    while True:
        try:
            return read()
        except FlotillaError as error:
            if error.what != said:
                log.warning("%s", error.what)
            said = error.what
        sleep(RETRY_SECONDS)

"""Tell people that a deploy began and how it ended: a webhook, an SNS topic.

Nothing here may change how a deploy ends or hold it up: what could not be told within a few seconds
is a note of the outcome. The webhook's address is a secret and in no message.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import requests

from flotilla.aws.secrets import named
from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError
from flotilla.settings import Settings

# For all of it together: a receiver that hangs costs a deploy this, twice.
DEADLINE_SECONDS = 5.0
_SUBJECT = 100  # SNS takes no longer one


def tell(
    settings: Settings, event: str, text: str, *, seconds: float = DEADLINE_SECONDS, **fields: Any
) -> list[str]:
    """Tell everybody whom fleet.yml names; what could not be told, as sentences.

    ``event`` is "began" or "ended"; ``text`` one line for people; ``fields`` are JSON types.
    """
    chosen = settings.deploy.notify
    message = {"text": f"{settings.prefix}: {text}", "event": event, "env": settings.env, **fields}
    ways: dict[str, Callable[[], None]] = {}
    if chosen.webhook_url_parameter:
        ways["the webhook"] = lambda: _post(settings, chosen.webhook_url_parameter or "", message)
    if chosen.sns_topic:
        ways["the SNS topic"] = lambda: _publish(settings, chosen.sns_topic or "", message)
    return _all(ways, event, seconds)


def _all(ways: dict[str, Callable[[], None]], event: str, seconds: float) -> list[str]:
    """All ways at once. Daemon threads: a receiver that never answers keeps no process alive."""
    failures: dict[str, str] = dict.fromkeys(ways, f"no answer within {seconds:g} s")

    def attempt(name: str) -> None:
        try:
            ways[name]()
        except FlotillaError as error:
            failures[name] = error.what
        except requests.RequestException as error:
            # Its text has the address in it.
            failures[name] = type(error).__name__
        else:
            del failures[name]

    threads = [threading.Thread(target=attempt, args=(name,), daemon=True) for name in ways]
    for thread in threads:
        thread.start()
    last = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, last - time.monotonic()))
    return [
        f"{name} was not told that the deploy {event}: {why}" for name, why in [*failures.items()]
    ]


def _post(settings: Settings, parameter: str, message: dict[str, Any]) -> None:
    url = named(settings, [parameter])[parameter].strip()
    # A redirect would send the message to somebody fleet.yml does not name.
    answer = requests.post(
        url, json=message, timeout=DEADLINE_SECONDS, allow_redirects=False, stream=True
    )
    answer.close()
    if not 200 <= answer.status_code < 300:
        raise FlotillaError(f"it answered {answer.status_code}")


def _publish(settings: Settings, topic: str, message: dict[str, Any]) -> None:
    with described(settings, f"publish to {topic}"):
        client(settings, "sns", attempts=1).publish(
            TopicArn=topic,
            Subject=message["text"].splitlines()[0][:_SUBJECT],
            Message=json.dumps(message),
        )

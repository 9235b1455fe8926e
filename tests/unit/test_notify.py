"""Telling people of a deploy: what they get, and that nobody who fails can hold a deploy up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from fleets import maker
from moto import mock_aws

from flotilla.aws.session import client
from flotilla.deploy import notify
from flotilla.settings import Settings

PARAMETER = "/flotilla/lab/deploy/webhook_url"
SECRET = "T0K3N"


class Receiver(BaseHTTPRequestHandler):
    got: ClassVar[list[dict[str, Any]]] = []
    status = 200
    location = ""
    wait_seconds = 0.0

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        time.sleep(self.wait_seconds)
        self.send_response(self.status)
        if self.location:
            self.send_header("Location", self.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[ThreadingHTTPServer]:
    handler = type("OneReceiver", (Receiver,), {"got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def settings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # Clients are made once in a process; one made under a mock that is over would ask AWS.
    with mock_aws(config={"core": {"mock_credentials": True}}):
        yield maker(tmp_path)().settings


def wanting(settings: Settings, url: str = "", topic: str | None = None) -> Settings:
    """The settings with these receivers; the URL is kept as AWS keeps a secret."""
    if url:
        client(settings, "ssm").put_parameter(Name=PARAMETER, Value=url, Type="SecureString")
    section = settings.deploy.notify.model_copy(
        update={"webhook_url_parameter": PARAMETER if url else None, "sns_topic": topic}
    )
    deploy = settings.deploy.model_copy(update={"notify": section})
    return settings.model_copy(update={"deploy": deploy}).placed(settings.root, "")


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/hooks/{SECRET}"


def handler(server: ThreadingHTTPServer) -> Any:
    return server.RequestHandlerClass


def test_a_webhook_gets_one_line_for_people_and_fields_for_programs(settings, receiver):
    fleet = wanting(settings, address(receiver))
    assert notify.tell(fleet, "ended", "v2 done", version="v2", result="done") == []
    assert handler(receiver).got == [
        {
            "text": "flotilla-lab: v2 done",
            "event": "ended",
            "env": "lab",
            "version": "v2",
            "result": "done",
        }
    ]


def test_an_sns_topic_gets_the_same(settings):
    topic = client(settings, "sns").create_topic(Name="deploys")["TopicArn"]
    sqs = client(settings, "sqs")
    queue = sqs.create_queue(QueueName="q")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    client(settings, "sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["QueueArn"])
    assert notify.tell(wanting(settings, topic=topic), "began", "v2 began", version="v2") == []
    body = json.loads(sqs.receive_message(QueueUrl=queue)["Messages"][0]["Body"])
    assert body["Subject"] == "flotilla-lab: v2 began"
    assert json.loads(body["Message"])["version"] == "v2"


def test_nobody_to_tell_is_no_note(settings):
    assert notify.tell(wanting(settings), "began", "v2 began") == []


def test_a_receiver_that_hangs_is_noted_after_the_deadline(settings, receiver):
    handler(receiver).wait_seconds = 60
    began = time.monotonic()
    notes = notify.tell(wanting(settings, address(receiver)), "ended", "x", seconds=0.5)
    assert time.monotonic() - began < 30
    assert notes == ["the webhook was not told that the deploy ended: no answer within 0.5 s"]


@pytest.mark.parametrize(("status", "said"), [(500, "it answered 500"), (404, "it answered 404")])
def test_a_receiver_that_refuses_is_noted(settings, receiver, status, said):
    handler(receiver).status = status
    notes = notify.tell(wanting(settings, address(receiver)), "ended", "x")
    assert notes == [f"the webhook was not told that the deploy ended: {said}"]


def test_a_redirect_is_not_followed(settings, receiver):
    handler(receiver).status, handler(receiver).location = 302, "http://127.0.0.1:1/elsewhere"
    assert "it answered 302" in notify.tell(wanting(settings, address(receiver)), "ended", "x")[0]


@pytest.mark.parametrize("url", [f"http://127.0.0.1:1/{SECRET}", f"no-address/{SECRET}"])
def test_the_address_is_in_no_message(settings, url):
    notes = notify.tell(wanting(settings, url), "ended", "x")
    assert len(notes) == 1
    assert SECRET not in notes[0]
    assert "127.0.0.1" not in notes[0]


def test_a_secret_that_is_not_there_is_noted(settings, receiver):
    fleet = wanting(settings, address(receiver))
    client(settings, "ssm").delete_parameter(Name=PARAMETER)
    assert f"SSM has no parameter {PARAMETER}" in notify.tell(fleet, "ended", "x")[0]


def test_a_topic_that_is_not_there_keeps_the_webhook_from_nothing(settings, receiver):
    topic = "arn:aws:sns:eu-central-1:123456789012:gone"
    notes = notify.tell(wanting(settings, address(receiver), topic), "ended", "x")
    assert len(notes) == 1
    assert notes[0].startswith("the SNS topic was not told")
    assert len(handler(receiver).got) == 1

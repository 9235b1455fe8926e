"""A role's parameters are its own: SSM of the lab refuses the others', and says who asked."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import moto_env, rights  # isort: skip  moto reads its settings when it is imported

from moto import mock_aws

from flotilla.provision.identity import files
from flotilla.provision.world import data
from flotilla.rules.policies import merge, render
from lab.identity import Identity
from lab.layout import ACCOUNT, REGION
from lab.wsgi import Api, Calls

ROLE = "shop-blue-app"
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})
VALUES = {
    "partition": "aws",
    "region": REGION,
    "account": ACCOUNT,
    "fleet": "shop",
    "env": "blue",
    "role": "app",
    "namespace": "Flotilla",
}


class Asked:
    """An API that lets everybody do everything, as moto does, behind the lab's own."""

    def __init__(self) -> None:
        self.record: list[dict[str, Any]] = []
        denied = functools.partial(rights.denied, account=ACCOUNT, backend=moto_env.backend)
        self._api = Api(
            *(self._moto, lambda *_: (404, {}), Calls(), lambda: None, self.record.append),
            denied=denied,
        )

    def _moto(self, _: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"{}"]

    def __call__(self, key: str, action: str, **asked: object) -> tuple[int, dict[str, Any]]:
        body = json.dumps(asked).encode()
        started: list[str] = []
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/",
            "HTTP_AUTHORIZATION": f"AWS4-HMAC-SHA256 Credential={key}/20260101/{REGION}/ssm/x",
            "HTTP_X_AMZ_TARGET": f"AmazonSSM.{action}",
            "REMOTE_ADDR": "10.0.0.9",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        answer = b"".join(self._api(environ, lambda line, *_: started.append(line)))
        return int(started[0].split()[0]), json.loads(answer)


@pytest.fixture
def key() -> Iterator[str]:
    """Of an instance with the policies that the fleet gives its role."""
    with mock_aws():
        iam = moto_env.backend("iam")
        role = iam.create_role(ROLE, TRUST, "/", None, "", [], 3600)
        document = render(merge(data(name) for name in files("app")), VALUES)
        iam.put_role_policy(ROLE, ROLE, json.dumps(document))
        iam.create_instance_profile(ROLE, "/", [role.name])
        identity = Identity(moto_env.backend, REGION)
        (profile,) = iam.get_instance_profiles()
        found = identity.role(profile.arn)
        assert found
        yield identity.keys("i-1", found).access_key


def test_a_role_has_its_own_parameters(key: str) -> None:
    ask = Asked()
    own = ["/shop/blue/app/secret_key", "/shop/blue/app/tls_issuer:3"]
    assert ask(key, "GetParameters", Names=own, WithDecryption=True) == (200, {})
    assert ask(key, "GetParameter", Name=own[0]) == (200, {})
    assert ask(key, "GetParametersByPath", Path="/shop/blue/app/") == (200, {})
    assert [line["status"] for line in ask.record] == [200] * 3


@pytest.mark.parametrize(
    "asked",
    [
        {"Name": "/shop/blue/mysql/root_password"},
        {"Name": f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/shop/blue/mysql/root_password"},
        {"Names": ["/shop/blue/app/secret_key", "/shop/blue/mysql/root_password"]},
        {"Path": "/shop/blue/mysql"},
        {"Path": "/shop/blue/"},
        {"Name": "/shop/green/app/secret_key"},
    ],
    ids=str,
)
def test_another_roles_path_is_refused_and_the_record_says_whose(key: str, asked: Any) -> None:
    ask = Asked()
    verb = {"Name": "GetParameter", "Names": "GetParameters", "Path": "GetParametersByPath"}
    action = verb[next(iter(asked))]
    status, answer = ask(key, action, **asked)
    assert (status, answer["__type"]) == (400, "AccessDeniedException")
    (line,) = ask.record
    assert (line["role"], line["action"], line["source"]) == (ROLE, action, "10.0.0.9")
    assert line["error"] == "AccessDeniedException"
    assert line["resource"] in answer["message"]
    assert ":parameter/shop/" in line["resource"]


def test_what_no_policy_of_the_role_names_is_refused(key: str) -> None:
    assert Asked()(key, "PutParameter", Name="/shop/blue/app/secret_key")[0] == 400
    moto_env.backend("iam").delete_role_policy(ROLE, ROLE)
    assert Asked()(key, "GetParameter", Name="/shop/blue/app/secret_key")[0] == 400


def test_the_operator_may(key: str) -> None:
    assert Asked()("operator", "GetParameter", Name="/shop/blue/mysql/root_password")[0] == 200

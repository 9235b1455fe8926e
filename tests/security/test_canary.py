"""A secret is found in whatever form and place it is, and told by its slot alone."""

from __future__ import annotations

import base64
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from security import canary, search
from security.canary import Found

from flotilla.hosts import certificates
from flotilla.provision.authority import HOLDERS, ISSUER
from flotilla.provision.world import data

PLACES = yaml.safe_load((Path(__file__).parent / "places.yml").read_text())
# As provisioning makes them.
SECRET = token_urlsafe(24)
TEXTS = canary.texts({"mysql/app_password": SECRET})


def find(content: bytes) -> set[str]:
    return search.Finder(TEXTS).slots(io.BytesIO(content))


@given(before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_base64_is_found_wherever_the_value_begins(before: bytes, after: bytes):
    text = before + SECRET.encode() + after
    assert find(text)
    assert find(base64.b64encode(text))
    assert find(base64.urlsafe_b64encode(text))


def test_a_value_with_strange_letters_is_found_in_urls_and_json():
    strange = 'p@ss/wörd+"with%20all&of=it?'
    finder = search.Finder(canary.texts({"x/y": strange}))
    for text in (quote(strange, safe=""), json.dumps({"a": strange}), strange):
        assert finder.slots(io.BytesIO(text.encode())) == {"x/y"}


def test_a_value_across_two_reads_is_found():
    assert find(b"x" * ((1 << 20) - 7) + SECRET.encode() + b"y")
    assert not find(b"x" * (1 << 21) + SECRET[:-1].encode())


def test_a_private_key_is_known_by_the_lines_that_are_only_its_own():
    one, other = certificates.new_ca(), certificates.new_ca()
    finder = search.Finder(canary.texts({"ssh/user_ca": one}))
    assert finder.slots(io.BytesIO(json.dumps(one).encode()))
    assert not finder.slots(io.BytesIO(other.encode()))
    public = certificates.public_of(one, "x")
    assert not finder.slots(io.BytesIO(public.encode())), "everybody may have that"


@pytest.mark.parametrize("columns", [64, 70], ids=["cryptography", "ssh-keygen"])
def test_no_line_of_a_key_is_in_what_it_signs(columns: int):
    """Wherever the public half begins there: names of any length are before it."""
    for _ in range(5):
        first, *lines, last = certificates.new_ca().strip().split("\n")
        text = "".join(lines)
        lines = [text[n : n + columns] for n in range(0, len(text), columns)]
        key = "\n".join([first, *lines, last]) + "\n"
        blob = base64.b64decode(certificates.public_of(key, "x").split()[1])
        finder = search.Finder(canary.texts({"ssh/host_ca": key}))
        assert finder.slots(io.BytesIO(key.encode()))
        for before in range(3):
            signed = base64.b64encode(b"\0" * (before + 4) + blob + b"\0\0\0\x53" + blob)
            assert not finder.slots(io.BytesIO(signed))
        seed = base64.b64decode(text)[161:193]
        own = [
            base64.b64decode("A" * n + one + "=" * (-(n + len(one)) % 4))
            for one in canary.values(key)
            for n in range(4)
            if (n + len(one)) % 4 != 1
        ]
        assert any(seed[:30] in one or seed[1:31] in one for one in own), "the secret itself"


def test_a_certificate_beside_a_key_is_no_secret():
    body = "first\nthe-same-for-all-of-them\nlast"
    certificate = f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
    keys = [certificates.new_ca() for _ in range(2)]
    texts = canary.texts({f"a/{n}": key + certificate for n, key in enumerate(keys)})
    assert not search.Finder(texts).slots(io.BytesIO(certificate.encode()))


@pytest.mark.parametrize(
    "secrets", [{"a/b": ""}, {"a/b": "short"}, {"a/b": SECRET, "a/c": f"{SECRET} {SECRET[::-1]}"}]
)
def test_what_could_not_be_told_apart_is_refused(secrets: dict[str, str]):
    with pytest.raises(ValueError, match="a/"):
        canary.texts(secrets)


def test_files_are_found_compressed_ones_too_and_no_value_is_told(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "plain.log").write_text(f"password={SECRET}\n")
    (tmp_path / "old.1").write_bytes(gzip.compress(SECRET.encode()))
    (tmp_path / "fine").write_text("nothing")
    subprocess.run(["zstd", "-q", "-o", tmp_path / "x"], input=SECRET.encode(), check=True)
    order = {"texts": TEXTS, "roots": [str(tmp_path)], "host": False}
    program = Path(search.__file__).read_text()
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
    )
    assert {Path(place).name for _, place in json.loads(done.stdout)} == {"plain.log", "old.1", "x"}
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["cmdline", "environ"])
def test_arguments_and_environments_are_looked_at(kind: str):
    wait = "import sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", wait, *([SECRET] if kind == "cmdline" else [])],
        env={"SECRET": SECRET} if kind == "environ" else {},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    try:
        places = [place for _, place in search.Finder(TEXTS).processes()]
    finally:
        process.communicate()
    assert [place.startswith(f"{kind} of python") for place in places] == [True]


def test_a_secret_belongs_on_hosts_of_its_role_and_nowhere_else():
    home = Found("mysql/app_password", "app-1", "app", "/etc/app/environment")
    assert canary.leaks([home], PLACES) == []
    for wrong in (
        home._replace(role="lb", host="lb-1"),
        home._replace(place="/var/log/syslog"),
        home._replace(slot="mysql/root_password"),
        home._replace(place="journal"),
        home._replace(place="cmdline of gunicorn (app.service)"),
        home._replace(host="", role="", place="s3://b/k"),
    ):
        assert len(canary.leaks([home, wrong], PLACES)) == 1
    assert canary.leaks([home._replace(slot="mysql/app_password.previous")], PLACES) == []
    assert canary.leaks([home._replace(slot="unread", place="/x.lz4")], PLACES)


def test_every_place_is_of_a_secret_that_a_fleet_has():
    made = {f"{role}/{name}" for role, names in data("secrets.yml").items() for name in names}
    issuers = {f"{role}/{ISSUER}" for role in HOLDERS}
    made |= {*issuers, "operator/authority"}
    for entry in PLACES:
        assert set(entry["slots"]) <= made
        assert entry["why"]
    assert issuers <= {slot for entry in PLACES for slot in entry["slots"]}

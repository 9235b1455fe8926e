"""What the agent would ignore is found, and a download is trusted only when it is pinned."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess

import pytest

from flotilla import environment
from flotilla.rules import cloudwatch

MODULE = environment.root() / "roles/cloudwatch_agent/library/cloudwatch_agent_package.py"


def config(**metrics):
    return {"metrics": {"metrics_collected": {"mem": {"measurement": ["used_percent"]}}} | metrics}


def collected(**plugins):
    return config(metrics_collected=plugins)


def test_names_are_known_with_and_without_their_plugin():
    for name in ("used_percent", "mem_used_percent", {"name": "used_percent", "unit": "Percent"}):
        assert cloudwatch.faults(collected(mem={"measurement": [name]})) == []


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (collected(mem={"measurement": ["percent_used"]}), "mem has no measurement percent_used"),
        (collected(mem={"measurement": [{"name": "fre"}]}), "mem has no measurement fre"),
        (collected(procstat=[{"exe": "x", "measurement": ["rss"]}]), "no measurement rss"),
        (collected(memory={"measurement": []}), "there is no plugin memory"),
        (config(append_dimensions={"Role": "app"}), "append_dimensions Role"),
        (config(append_dimensions={"InstanceId": "i-1"}), "append_dimensions InstanceId"),
        (config(aggregation_dimensions=[["Role"]]), "aggregation over Role"),
    ],
)
def test_what_the_schema_lets_through_and_the_agent_ignores_is_a_fault(broken, fault):
    faults = cloudwatch.faults(broken)
    assert len(faults) == 1
    assert fault in faults[0]


# The package


@pytest.fixture(scope="module")
def package():
    spec = importlib.util.spec_from_file_location("cloudwatch_agent_package", MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vendor(tmp_path_factory):
    """A signing key, a package and its signature, made with the real gpg."""
    if not (shutil.which("gpg") and shutil.which("gpgv")):
        pytest.skip("gpg and gpgv are not installed here")
    folder = tmp_path_factory.mktemp("vendor")
    home = folder / "home"
    home.mkdir(mode=0o700)

    def gpg(*argv):
        line = ["gpg", "--homedir", home, "--batch", "--passphrase", "", "--yes", *argv]
        done = subprocess.run(
            [str(part) for part in line], capture_output=True, text=True, check=True
        )
        return done.stdout

    gpg("--quick-generate-key", "Agent <agent@example.org>", "rsa2048", "sign", "never")
    shown = gpg("--with-colons", "--fingerprint")
    fingerprint = next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr"))
    deb = folder / "agent.deb"
    deb.write_bytes(b"a package" * 1000)
    gpg("--detach-sign", "--output", folder / "sig", deb)
    (folder / "key").write_text(gpg("--armor", "--export"))
    yield {
        "package": deb,
        "signature": folder / "sig",
        "key": folder / "key",
        "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
        "fingerprint": fingerprint,
    }
    subprocess.run(
        ["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True, check=False
    )


def test_the_pinned_package_is_trusted_however_the_fingerprint_is_written(package, vendor):
    package.verify(**vendor)
    spaced = " ".join(vendor["fingerprint"][i : i + 4].lower() for i in range(0, 40, 4))
    package.verify(**vendor | {"fingerprint": spaced})


def test_a_package_of_another_content_is_not_trusted(package, vendor):
    with pytest.raises(package.UntrustedError, match="SHA-256"):
        package.verify(**vendor | {"sha256": "0" * 64})


def test_a_package_that_was_changed_after_it_was_signed_is_not_trusted(package, vendor, tmp_path):
    changed = tmp_path / "agent.deb"
    changed.write_bytes(vendor["package"].read_bytes() + b"!")
    sha256 = hashlib.sha256(changed.read_bytes()).hexdigest()
    with pytest.raises(package.UntrustedError, match="signature"):
        package.verify(**vendor | {"package": changed, "sha256": sha256})


def test_a_good_signature_by_another_key_is_not_trusted(package, vendor):
    with pytest.raises(package.UntrustedError, match="signature"):
        package.verify(**vendor | {"fingerprint": "9" * 40})


def test_a_download_without_tls_is_refused(package, tmp_path):
    with pytest.raises(package.UntrustedError, match="https"):
        package.download("http://127.0.0.1/agent.deb", tmp_path / "x", 1)


def test_the_reason_for_leaving_it_out_fits_a_board(package):
    folder = "https://127.0.0.1:9/a/path/of/more/letters/than/a/line/of/a/terminal/has/room/for/1.3"
    reason = package.fetch_and_install(
        {"url": f"{folder}/agent.deb", "key_url": f"{folder}/key", "timeout_seconds": 1}
    )
    assert reason.startswith("agent.deb could not be downloaded from 127.0.0.1:9: [Errno 111]")
    assert max(map(len, reason.split())) < 40


def test_a_record_is_written_once_and_says_why(package, tmp_path):
    record = tmp_path / "record.json"
    content = {"installed": False, "reason": "no route", "version": "1"}
    assert package.write_record(record, content)
    assert not package.write_record(record, content)
    assert package.read_record(record) == content
    assert package.read_record(tmp_path / "none") == {}

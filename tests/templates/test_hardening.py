"""What every host is without, and that each thing it is left with has a reason."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "roles/hardening/defaults/main.yml").read_text())
BASE = yaml.safe_load((ROOT / "roles/base/defaults/main.yml").read_text())
# What the run-books upgrade one host at a time.
STATEFUL = ("mysql-server", "redis-server", "haproxy", "keepalived", "nginx-light")


def test_every_test_that_is_left_out_has_a_reason_in_the_profile(render):
    lines = render("hardening", "lynis.prf.j2", host="app-1").splitlines()
    skips = [n for n, line in enumerate(lines) if line.startswith("skip-test=")]
    assert len(skips) >= len(DEFAULTS["hardening_skips"])
    for number in skips:
        assert re.fullmatch(r"skip-test=[A-Z]{3,4}-\d{4}(:[a-z0-9_.]+)?", lines[number])
        before = next(line for line in reversed(lines[:number]) if not line.startswith("skip-"))
        assert len(before) > 20, "a reason is a sentence"
        assert before.startswith("# ")
    assert all(len(skip["why"]) > 20 for skip in DEFAULTS["hardening_skips"])


def test_no_setting_of_the_kernel_is_said_twice():
    assert not set(DEFAULTS["hardening_sysctl"]) & set(BASE["base_sysctl"])


def test_kernel_settings_are_lines_that_sysctl_reads(render):
    text = render("hardening", "sysctl.conf.j2", host="lb-1")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(DEFAULTS["hardening_sysctl"])
    assert all(re.fullmatch(r"[a-z0-9_.]+ = \d+", line) for line in lines)


def test_what_the_services_need_is_not_taken_from_them():
    """keepalived, HAProxy and the packet filter load these; MySQL and Redis map and lock memory."""
    needed = {"nf_tables", "nf_conntrack", "ip_vs", "ena", "nvme", "tls", "veth", "bridge"}
    assert not needed & set(DEFAULTS["hardening_modules"])
    settings = DEFAULTS["hardening_sysctl"]
    assert "net.ipv4.ip_nonlocal_bind" not in settings
    assert not [key for key in settings if key.startswith(("vm.", "net.ipv4.ip_forward"))]


@pytest.mark.parametrize("module", DEFAULTS["hardening_modules"])
def test_a_module_is_kept_out_however_it_is_asked_for(render, module: str):
    text = render("hardening", "modprobe.conf.j2", host="app-1")
    assert f"\nblacklist {module}\n" in text
    assert f"\ninstall {module} /bin/false\n" in text


@pytest.mark.parametrize("package", STATEFUL)
def test_nightly_upgrades_leave_alone_what_a_run_book_upgrades(render, package: str):
    text = render("base", "apt.conf.j2", host="app-1")
    listed = re.search(r"Package-Blacklist \{(.*?)\};", text, re.DOTALL)
    assert listed
    patterns = re.findall(r'"([^"]+)"', listed[1])
    assert any(re.match(pattern, package) for pattern in patterns)


def test_a_file_that_a_role_changed_keeps_no_package_from_its_upgrade(render):
    """/etc/issue is one of base-files'."""
    assert '"--force-confold";' in render("base", "apt.conf.j2", host="app-1")


def test_the_journal_outlives_a_reboot_and_no_image_has_a_compiler(render):
    assert "Storage=persistent" in render("base", "journald.conf.j2", host="app-1")
    expected = yaml.safe_load((ROOT / "packer/base/expect.yml").read_text())
    assert {"/usr/bin/cc", "/usr/bin/gcc", "/usr/bin/as"} <= set(expected["absent"])


def test_the_role_is_in_every_image_and_on_every_host():
    image = yaml.safe_load((ROOT / "playbooks/image_base.yml").read_text())
    assert "hardening" in image[0]["vars"]["image_roles"]
    site = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    every = next(play for play in site if play["name"] == "Every host")
    assert {"role": "hardening"} in every["roles"]


def test_openssl_finds_the_groups_from_its_first_section_on(render):
    """Real servers agree on keys by them in tests/security."""
    found = configparser.ConfigParser()
    found.read_string(render("hardening", "openssl.cnf.j2", host="redis-1"))
    system = found[found["openssl_init"]["ssl_conf"]]["system_default"]
    assert found[system]["Groups"].split(":") == DEFAULTS["hardening_tls_groups"]

"""What an operator reads while a playbook runs."""

from __future__ import annotations

from flotilla.rules.progress import SLOW_SECONDS, Progress

CALM = """\
PLAY [Caches] ***************

TASK [redis : Install | Install the packages] ***
ok: [redis-1]
ok: [redis-2] => (item=x)
"""


def told(text: str, seconds: float = 1.0) -> tuple[list[str], Progress]:
    """Everything told of ``text`` and a recap, each line arriving ``seconds`` after the other."""
    progress = Progress()
    lines = [*text.splitlines(), "PLAY RECAP ********"]
    said = [news for n, line in enumerate(lines) for news in progress.feed(line, n * seconds)]
    return said, progress


def test_a_play_that_changes_nothing_is_one_line():
    said, progress = told(CALM)
    assert said == ["Caches: 1 task on 2 hosts, 0 changed ... ok 5.0 s"]
    assert progress.failures == []


def test_a_task_that_changes_something_is_named_with_its_hosts():
    said, _ = told(CALM.replace("ok: [redis-2]", "changed: [redis-2]"))
    assert said == [
        "  redis : Install | Install the packages: changed redis-2 (3.0 s)",
        "Caches: 1 task on 2 hosts, 1 changed ... ok 5.0 s",
    ]


def test_a_task_that_takes_long_is_named():
    said, _ = told(CALM, SLOW_SECONDS)
    assert said[0] == "  redis : Install | Install the packages: ok (30.0 s)"


def test_a_handler_counts_as_a_task():
    said, _ = told(CALM + "RUNNING HANDLER [base : Reload sshd] ***\nchanged: [redis-1]\n")
    assert said[-1].startswith("Caches: 2 tasks on 2 hosts, 1 changed")


def test_a_play_that_no_host_is_in_is_not_mentioned():
    assert told("PLAY [Databases] ***\nskipping: no hosts matched\n")[0] == []


def test_a_failed_task_is_kept_with_its_reason_and_nothing_else():
    text = CALM + (
        "TASK [redis : Configure | Start] ***\n"
        "ok: [redis-1]\n"
        "[ERROR]: Task failed: Unable to start\n"
        "Origin: roles/redis/tasks/configure.yml:9:3\n"
        "fatal: [redis-2]: FAILED! => \n"
        "    changed: false\n"
        "    msg: Unable to start\n"
        "changed: [redis-3]\n"
    )
    said, progress = told(text)
    assert said[0].startswith("  redis : Configure | Start: changed redis-3; FAILED redis-2")
    assert "... FAILED on redis-2" in said[-1]
    assert progress.failures == [
        "TASK [redis : Configure | Start]",
        "[ERROR]: Task failed: Unable to start",
        "Origin: roles/redis/tasks/configure.yml:9:3",
        "fatal: [redis-2]: FAILED! => ",
        "    changed: false",
        "    msg: Unable to start",
    ]


def test_an_unreachable_host_is_a_failure():
    said, progress = told(CALM + "TASK [t] ***\nfatal: [redis-3]: UNREACHABLE! => \n    msg: x\n")
    assert "FAILED on redis-3" in said[-1]
    assert progress.failures[-1] == "    msg: x"


def test_a_failure_the_play_ignores_is_not_reported_as_one():
    said, progress = told(CALM + "TASK [t] ***\nfatal: [redis-1]: FAILED! => \n...ignoring\n")
    assert "ok" in said[-1]
    assert progress.failures == []

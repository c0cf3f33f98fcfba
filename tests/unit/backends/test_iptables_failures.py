"""What the tools' words mean. Each text was printed by iptables 1.8.9."""

from __future__ import annotations

import pytest

from kproxy.backends.iptables.failures import FamilyUnusableError, classify
from kproxy.errors import ApplyError, ExitCode, UnsupportedError

TEXT = "*nat\n:X - [0:0]\n-A X -j NOPE\nCOMMIT\n"


@pytest.mark.parametrize(
    ("exit_code", "stderr", "retryable", "told"),
    [
        (
            4,
            "Can't lock /run/xtables.lock: Resource temporarily unavailable\n"
            "Another app is currently holding the xtables lock. Stopped waiting after 5s.\n",
            True,
            "Can't lock /run/xtables.lock",
        ),
        (1, "iptables-restore: line 4 failed\n", True, "line 4 failed"),
        (1, "iptables-restore: line 3 failed\n", False, "line 3 failed"),
        (
            4,
            "iptables-nft-restore v1.8.9 (nf_tables): \nline 3: CHAIN_DEL failed (Device or resource busy): chain B\n",
            False,
            "line 3: CHAIN_DEL failed (Device or resource busy): chain B",
        ),
        (
            2,
            'iptables-restore v1.8.9 (legacy): unknown option "--foo"\nError occurred at line: 3\nTry `iptables-restore -h\'\n',
            False,
            'unknown option "--foo"',
        ),
        (
            2,
            "iptables-restore v1.8.9 (legacy): Couldn't load match `recent':No such file or directory\n\nError occurred at line: 3\n",
            False,
            "the match 'recent' is not installed",
        ),
        (139, "", False, "ended with 139"),
    ],
)
def test_refusals(exit_code: int, stderr: str, retryable: bool, told: str) -> None:
    error = classify("iptables-legacy-restore", exit_code, stderr, TEXT)
    assert isinstance(error, ApplyError)
    assert error.retryable is retryable
    assert told in str(error)
    assert error.batch == TEXT


def test_the_failing_line_is_shown_with_its_neighbours() -> None:
    error = classify("iptables-restore", 1, "iptables-restore: line 3 failed\n", TEXT)
    assert isinstance(error, ApplyError)
    assert "  2: :X - [0:0]\n> 3: -A X -j NOPE\n  4: COMMIT" in error.detail


@pytest.mark.parametrize(
    "stderr",
    [
        "Fatal: can't open lock file /run/xtables.lock: Permission denied\n",
        "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n",
        "iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)\n",
    ],
)
def test_a_missing_privilege_is_named(stderr: str) -> None:
    error = classify("iptables-save", 4, stderr, "")
    assert type(error) is UnsupportedError
    assert error.exit_code is ExitCode.UNSUPPORTED
    assert "CAP_NET_ADMIN" in str(error)


def test_a_missing_table_makes_the_family_unusable() -> None:
    stderr = "ip6tables-restore v1.8.9 (legacy): ip6tables-restore: unable to initialize table 'nat'\nError occurred at line: 1\n"
    error = classify("ip6tables-restore", 2, stderr, TEXT)
    assert isinstance(error, FamilyUnusableError)
    assert "unable to initialize table 'nat'" in str(error)


def test_lines_that_do_not_exist_are_no_reason_to_fall_over() -> None:
    error = classify("iptables-restore", 1, "iptables-restore: line 99 failed\n", TEXT)
    assert isinstance(error, ApplyError)
    assert not error.retryable

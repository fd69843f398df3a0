"""The process of the command: huge pages are asked for once, and what was typed arrives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lacy_jax import __main__ as process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's tunables are for Linux")
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_process_starts_anew_with_huge_pages_unless_it_was_told(given, wanted):
    program = (
        "import os, sys; from lacy_jax.__main__ import restart_with_huge_pages as restart; print(os.getpid()); sys.stdout.flush();"
        "restart(); print(os.environ['GLIBC_TUNABLES'], sys.argv[1:])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if given:
        environment["GLIBC_TUNABLES"] = given
    done = subprocess.run(
        [sys.executable, "-c", program, "a b", "--c=1"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *starts, last = done.stdout.splitlines()
    assert len(set(starts)) == 1, "the same process"
    assert len(starts) == (1 if given == wanted else 2)
    assert last == f"{wanted} ['a b', '--c=1']"


def test_a_system_that_cannot_restart_goes_on(monkeypatch):
    def refused(*_):
        raise OSError

    monkeypatch.setattr(os, "execve", refused)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    process.restart_with_huge_pages()


def test_the_command_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "lacy_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: lacy")

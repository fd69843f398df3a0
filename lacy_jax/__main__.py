"""The process of the `lacy` command, also `python -m lacy_jax`. What must be settled before anything else is loaded."""

from __future__ import annotations

import contextlib
import os
import sys

HUGE_PAGES = "glibc.malloc.hugetlb"
"""glibc reads it at the start of a process (its manual, "Tunables"): large allocations then ask for huge pages."""


def main() -> int:
    """Run the command; returns the exit status."""
    restart_with_huge_pages()
    from lacy_jax.cli import main as run

    return run()


def restart_with_huge_pages() -> None:
    """Start this process anew, once, with huge pages for large allocations; on Linux, unless the environment settles them.

    On a CPU, XLA takes the scratch memory of a step anew each time, and the system maps and clears it page by page; pages
    of 2 MiB instead of 4 KiB are few. Where there are none, nothing changes.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or HUGE_PAGES in given or not sys.executable:
        return
    tunables = ":".join(filter(None, (given, f"{HUGE_PAGES}=1")))
    with contextlib.suppress(OSError):
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, "GLIBC_TUNABLES": tunables},
        )


if __name__ == "__main__":
    sys.exit(main())

"""Files beside a run's checkpoints (metrics, heartbeat, health, record, traces): written in the background, and retried
after a failure. If they cannot be written, the run warns but never stops.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable

from etils import epath

from lacy_jax import files

REMOTE_INTERVAL_S = 30.0
"""Least seconds between two writes of one file in a bucket, which allows one write a second and bills each."""
PART_BYTES = 64 * 2**10
"""A part of a file in a bucket grows up to this size; then the next one begins."""
_LEAST_S, _MOST_S = 1.0, 30.0  # Between two attempts.
_CLOSE_S, _FAILED_CLOSE_S = 120.0, 5.0
"""How long unfinished writes may delay the end of a session, and of a session that failed."""


@dataclasses.dataclass
class _Job:
    write: Callable[[], None]
    due: float
    failures: int = 0


class SideWriter:
    """One thread that writes the side files of a session; a context manager around it.

    Args:
      workdir: run directory; a file in a bucket is written at most every `interval_s` seconds.
      interval_s: None = `REMOTE_INTERVAL_S` in a bucket, none on a disk.
    """

    def __init__(self, workdir: epath.Path, interval_s: float | None = None):
        remote = REMOTE_INTERVAL_S if not files.is_local(workdir) else 0.0
        self._interval = remote if interval_s is None else interval_s
        self._jobs: dict[str, _Job] = {}
        self._last: dict[str, float] = {}  # Start of the last write of each.
        self._failures: collections.Counter[str] = collections.Counter()  # Since the last success.
        self._why: dict[str, str] = {}
        self._change = threading.Condition()
        self._running = ""
        self._over = False
        self._thread = threading.Thread(target=self._work, name="side files", daemon=True)

    def __enter__(self) -> SideWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(_CLOSE_S if kind is None else _FAILED_CLOSE_S)

    def submit(self, name: str, write: Callable[[], None], soon: bool = False) -> None:
        """Call `write` in the background until it does not raise.

        Args:
          name: what it writes, for people. A later `write` with the same name replaces one that still waits.
          soon: do not wait for the interval to pass.
        """
        with self._change:
            now = time.monotonic()
            due = max(
                now, self._last.get(name, -1e9) + (min(self._interval, 1.0) if soon else self._interval)
            )
            waiting = self._jobs.get(name)
            if waiting is None:
                self._jobs[name] = _Job(write, due)
            else:
                waiting.write = write
                waiting.due = waiting.due if waiting.failures else min(waiting.due, due)
            self._change.notify_all()

    def close(self, timeout_s: float) -> None:
        """Finish the pending writes and stop; those that cannot be finished in time are named and dropped."""
        with self._change:
            if self._over:
                return
            self._interval = 0.0
            for job in self._jobs.values():
                job.due = 0.0
            self._change.notify_all()
            self._change.wait_for(lambda: not (self._jobs or self._running), timeout_s)
            left = {*self._jobs, *([self._running] if self._running else [])}
            self._over = True
            self._change.notify_all()
        for name in sorted(left):
            why = self._why.get(name, f"not done within {timeout_s:g} s")
            print(f"warning: {name} of the last steps not written: {why}", file=sys.stderr, flush=True)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._over or bool(self._jobs))
                if self._over:
                    return
                name = min(self._jobs, key=lambda name: self._jobs[name].due)
                wait = self._jobs[name].due - time.monotonic()
                if wait > 0:
                    self._change.wait(wait)
                    continue
                job = self._jobs.pop(name)
                self._running, self._last[name] = name, time.monotonic()
            try:
                job.write()
            except Exception as error:  # The storage's client may raise anything.
                self._failed(name, job, files.reason(error))
            else:
                self._done(name)
            with self._change:
                self._running = ""
                self._change.notify_all()

    def _failed(self, name: str, job: _Job, why: str) -> None:
        with self._change:
            self._failures[name] += 1
            self._why[name] = why
            job.failures += 1
            job.due = time.monotonic() + min(_LEAST_S * 2 ** (self._failures[name] - 1), _MOST_S)
            if (newer := self._jobs.get(name)) is not None:
                newer.failures, newer.due = job.failures, job.due
            else:
                self._jobs[name] = job
        if self._failures[name] == 1:
            print(
                f"warning: cannot write {name}: {why}; trying again, training goes on",
                file=sys.stderr,
                flush=True,
            )

    def _done(self, name: str) -> None:
        self._why.pop(name, None)
        if failures := self._failures.pop(name, 0):
            print(f"note: {name} written, after {failures} failures", file=sys.stderr, flush=True)


class GrowingFile:
    """Data that grows by appending: a file on a disk; in a bucket, where appending is impossible, parts that are each
    replaced by a longer one until they are full.

    `add` is for the loop, `write` for the `SideWriter`. After a failure nothing is lost and nothing is written twice.

    Args:
      path: of part 0, 1, ... of this session; on a disk there is part 0 only.
      part_bytes: size at which a part is full.
    """

    def __init__(self, path: Callable[[int], epath.Path], part_bytes: int = PART_BYTES):
        self._path, self._part_bytes = path, part_bytes
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._number = 0
        self._part: bytes | None = None

    def add(self, data: bytes) -> None:
        """Append `data`, which is not split between parts."""
        with self._lock:
            self._waiting.append(data)

    def write(self) -> None:
        """Write the added data to its file. Raises whatever the storage raises."""
        with self._lock:
            taken = list(self._waiting)
        if taken:
            self._put(b"".join(taken))
        with self._lock:
            del self._waiting[: len(taken)]

    def _put(self, data: bytes) -> None:
        path = self._path(self._number)
        if files.is_local(path):
            _append(path, data)
            return
        if self._part is None:  # The first write of this session.
            self._part = path.read_bytes() if path.exists() else b""
        whole = self._part + data
        path.write_bytes(whole)  # In a bucket whole or not at all.
        self._part = whole
        if len(whole) >= self._part_bytes:
            self._number, self._part = self._number + 1, b""


def _append(path: epath.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        size, rest = file.tell(), memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)  # Remove half a line.
            raise

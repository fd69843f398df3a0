"""Copies of files from a bucket in a folder of this host, of bounded size, shared by all processes and runs of the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator

_FREE_SHARE = 0.05
"""What can be read from the bucket instead leaves this share of the disk free: a full disk of a node ends its pods."""
_POLL_S = 0.1


class CacheFull(Exception):
    """There is no room for a file; `str` says why."""


class HostCache:
    """A folder of whole, checked files.

    Args:
      folder: "" = lacy_cache below the folder for temporary files.
      most_gb: how much it may hold; 0 = nothing is kept. Files of earlier runs make room, the oldest first.
    """

    def __init__(self, folder: str = "", most_gb: float = 20.0):
        self.folder = pathlib.Path(folder or os.path.join(tempfile.gettempdir(), "lacy_cache"))
        self.most_bytes = int(most_gb * 1e9)
        self._mine: set[str] = set()

    def get(
        self,
        name: str,
        size: int,
        content: Callable[[], Iterable[bytes]],
        is_whole: Callable[[pathlib.Path], bool],
        stop: threading.Event | None = None,
        needed: bool = False,
    ) -> pathlib.Path:
        """The file `name`; written from `content` unless it is there.

        Args:
          size: of the file, in bytes.
          is_whole: whether a file's content is right; asked of a new copy and of one from an earlier run.
          stop: when set, give up.
          needed: nothing runs without the copy, so it may also take the last of the disk.

        Raises:
          CacheFull: it would not fit, or `stop` was set.
          OSError: the disk fails, or a copy is damaged; whatever `content` raises. Nothing is left behind.
        """
        stop = stop or threading.Event()
        path = self.folder / name
        self._mine.add(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(stop):
            for orphan in self.folder.glob(".*.tmp"):  # Of a process that was killed: the lock is ours.
                orphan.unlink(missing_ok=True)
            if path.exists() and path.stat().st_size == size and is_whole(path):
                os.utime(path)
                return path
            path.unlink(missing_ok=True)
            self._make_room(size, needed)
            temporary = self.folder / f".{name}.tmp"
            try:
                with open(temporary, "wb") as out:
                    for block in content():
                        if stop.is_set():
                            raise CacheFull("stopped")
                        out.write(block)
                if temporary.stat().st_size != size or not is_whole(temporary):
                    raise OSError(f"the copy of {name} is damaged")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return path

    @contextlib.contextmanager
    def _locked(self, stop: threading.Event) -> Iterator[None]:
        with open(self.folder / "lock", "w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stop.is_set():
                        raise CacheFull("stopped") from None
                    time.sleep(_POLL_S)
            yield

    def _make_room(self, size: int, needed: bool) -> None:
        """Remove files of other runs until `size` bytes fit; one that another process has open stays readable for it."""
        there = [path for path in self.folder.iterdir() if path.name != "lock"]
        held = sum(path.stat().st_size for path in there)
        others = sorted(
            (path for path in there if path.name not in self._mine), key=lambda p: p.stat().st_mtime
        )
        while held + size > self.most_bytes and others:
            held -= others[0].stat().st_size
            others.pop(0).unlink(missing_ok=True)
        if held + size > self.most_bytes:
            raise CacheFull(
                f"{self.folder} holds {held / 1e9:.3g} of {self.most_bytes / 1e9:.3g} GB (config.dataset.cache_gb)"
            )
        disk = shutil.disk_usage(self.folder)
        if disk.free - size < (0 if needed else _FREE_SHARE * disk.total):
            raise CacheFull(f"{disk.free / 1e9:.3g} GB are free on the disk of {self.folder}")

"""One process at a time builds in a dataset's folder: a lock on a local file, an object with a time in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from lacy_jax import files
from lacy_jax.dataset.metadata import BUILD_FOLDER
from lacy_jax.errors import DataError, LacyError

RENEWED_S, STALE_S = 60.0, 300.0
"""A claim in a bucket is renewed this often, and counts as left behind after this time."""
_LOCK = "lock"


@contextlib.contextmanager
def claimed(path: epath.Path) -> Iterator[None]:
    """Hold the dataset folder `path` for a build.

    Raises:
      DataError: another process is building there.
      LacyError: the folder cannot be written.
    """
    with _claimed_on_disk(path) if files.is_local(path) else _claimed_in_bucket(path):
        yield


@contextlib.contextmanager
def _claimed_on_disk(path: epath.Path) -> Iterator[None]:
    folder = path / BUILD_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / _LOCK, "w")  # noqa: SIM115 Held during the whole build and closed below.
    except OSError as error:
        raise LacyError(
            f"cannot write {folder}: {error.strerror or error}; choose another dataset.path"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"dataset {path}: another process is building it; wait for it or stop it"
            ) from None
        yield


@contextlib.contextmanager
def _claimed_in_bucket(path: epath.Path) -> Iterator[None]:
    lock = path / BUILD_FOLDER / _LOCK
    claim = _BucketClaim(os.fspath(lock))
    try:
        holder = claim.take()
    except FileNotFoundError:
        raise DataError(f"config.dataset.path = {path}: no such bucket") from None
    except Exception as error:
        if isinstance(error, LacyError) or not files.is_storage_failure(error):
            raise
        raise LacyError(f"cannot write {lock}: {files.reason(error)}; choose another dataset.path") from error
    if holder is not None:
        raise DataError(
            f"dataset {path}: process {holder['process']} of {holder['host']} is building it; wait for it, or, if it was killed, "
            f"{STALE_S:.0f} s"
        )
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWED_S):
            with contextlib.suppress(
                Exception
            ):  # The next one will do; the build's own writes say what is wrong.
                claim.renew()

    thread = threading.Thread(target=renew, name="build claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(Exception):  # It is left behind, and counts no more after a while.
            claim.give_back()


class _BucketClaim:
    """An object that says who builds, and since when. What decides is the generation that a bucket gives to whatever is
    written: of several processes that find the same claim left behind, one can remove it, and one can make the next.
    """

    def __init__(self, path: str):
        self._path = path
        self._client: Any = fsspec.filesystem("gcs", version_aware=True)
        self._id, self._mine = uuid.uuid4().hex, ""

    def take(self) -> dict[str, Any] | None:
        """Make it ours; returns what the claim of another process says, if that one holds it.

        Raises:
          DataError: what is there is no claim.
        """
        try:
            self._write("create")
            return None
        except FileExistsError:
            pass
        try:
            found = self._now()
            if found is not None:
                holder = self._read(found)
                if holder.get("id") == self._id:  # Made by an attempt whose answer was lost.
                    self._mine = found
                    return None
                if time.time() - holder["time"] < STALE_S:
                    return holder
                self._client.rm_file(f"{self._path}#{found}")
            self._write("create")
            return None
        except (FileNotFoundError, FileExistsError):  # Renewed, removed or made by another meanwhile.
            return {"process": "another", "host": "this or another host"}

    def renew(self) -> None:
        """Say that we still live, unless another process has taken it."""
        if self._now() == self._mine:
            self._write("overwrite")

    def give_back(self) -> None:
        """Remove it, if it is still ours."""
        self._client.rm_file(f"{self._path}#{self._mine}")

    def _write(self, mode: str) -> None:
        said = {"host": socket.gethostname(), "process": os.getpid(), "id": self._id, "time": time.time()}
        self._client.pipe_file(self._path, json.dumps(said).encode(), mode=mode)
        self._mine = self._now() or ""

    def _read(self, generation: str) -> dict[str, Any]:
        try:
            return json.loads(self._client.cat_file(f"{self._path}#{generation}"))
        except ValueError as error:
            raise DataError(f"build state unreadable: {self._path}: {error}") from error

    def _now(self) -> str | None:
        """The generation that is there."""
        self._client.invalidate_cache()
        try:
            return str(self._client.info(self._path)["generation"])
        except FileNotFoundError:
            return None

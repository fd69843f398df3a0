"""One process at a time builds in a dataset's folder: a lock on a local file, an object with a time in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
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
    client: Any = fsspec.filesystem("gcs")
    lock = path / BUILD_FOLDER / _LOCK

    def mine(mode: str) -> None:
        said = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        client.pipe_file(os.fspath(lock), json.dumps(said).encode(), mode=mode)

    try:
        try:
            mine("create")
        except FileExistsError:
            holder = files.read_json(lock, "build state")
            if time.time() - holder["time"] < STALE_S:
                raise DataError(
                    f"dataset {path}: process {holder['process']} of {holder['host']} is building it; wait for it, or, if it "
                    f"was killed, {STALE_S:.0f} s"
                ) from None
            mine("overwrite")
    except FileNotFoundError:
        raise DataError(f"config.dataset.path = {path}: no such bucket") from None
    except Exception as error:
        if isinstance(error, LacyError) or not files.is_storage_failure(error):
            raise
        raise LacyError(f"cannot write {lock}: {files.reason(error)}; choose another dataset.path") from error
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWED_S):
            with contextlib.suppress(
                Exception
            ):  # The next one will do; the build's own writes say what is wrong.
                mine("overwrite")

    thread = threading.Thread(target=renew, name="build claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(Exception):  # It is left behind, and counts no more after a while.
            lock.unlink(missing_ok=True)

"""Reading and writing files: a file is either complete or absent.

Every file is written under a temporary name in the same folder and then renamed, so a killed process or a full disk
never leaves half a file under its final name. Paths go through `etils.epath`, so `gs://` works wherever a local path
does.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import json
import os
import uuid
from typing import Any

import numpy as np
from etils import epath

from lacy_jax.errors import DataError, LacyError, StorageError, one_line


def write_text(path: epath.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically, creating the folder.

    Raises:
      LacyError: the disk is full or the folder is not writable; nothing is left under `path`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Like `write_text`, for bytes."""
    path = epath.Path(path)
    if not is_local(path):  # An object of a bucket is there as a whole or not at all.
        try:
            path.write_bytes(data)
        except Exception as error:
            if not is_storage_failure(error):
                raise
            raise StorageError(f"cannot write {path}: {reason(error)}") from error
        return
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {reason(error)}") from error


def upload(local: epath.PathLike, path: epath.PathLike) -> None:
    """Copy a local file to a bucket, where it is there as a whole or not at all. Raises the errors of `write_text`."""
    import fsspec

    try:
        fsspec.filesystem("gcs").put_file(os.fspath(local), os.fspath(path))
    except Exception as error:
        if not is_storage_failure(error):
            raise
        raise StorageError(f"cannot write {path}: {reason(error)}") from error
    forget_listing(epath.Path(path).parent)


def move_folder(path: epath.Path, to: epath.Path) -> None:
    """Give a folder another place, which must be free; in a bucket its objects one by one."""
    if is_local(path):
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    else:  # epath asks for a folder to move to, which a bucket does not have before its first object.
        import fsspec

        fsspec.filesystem("gcs").mv(os.fspath(path), os.fspath(to), recursive=True)
        forget_listing(path.parent)
        forget_listing(to.parent)


def write_array(path: epath.PathLike, array: np.ndarray) -> None:
    """Write an array in numpy's format, atomically. Raises the errors of `write_text`."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_array(
    path: epath.PathLike, what: str, dtype: Any, shape: tuple[int, ...] | None = None, *, mapped: bool = False
) -> np.ndarray:
    """Read an array in numpy's format; `what` names it in the error.

    With a damaged header numpy raises almost anything (SyntaxError, TypeError, TokenError, MemoryError ...) or
    returns an array of another type or order, so both cases are checked.

    Args:
      dtype: the expected type, or a tuple of allowed types.
      shape: the expected shape; None = any one-dimensional array.
      mapped: map a local file into memory instead of reading it.

    Raises:
      DataError: the file is missing or damaged, or the array has another type or shape.
    """
    path = epath.Path(path)
    try:
        if mapped:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            rest = path.stat().length - array.offset - array.nbytes
        else:
            stream = io.BytesIO(path.read_bytes())
            array = np.load(stream, allow_pickle=False)
            rest = len(stream.read())
    except FileNotFoundError:
        raise DataError(f"{what} not found: {path}") from None
    except Exception as error:
        raise DataError(f"{what} unreadable: {path}: {one_line(error, 200)}") from error
    allowed = [np.dtype(one) for one in (dtype if isinstance(dtype, tuple) else (dtype,))]
    wanted = f"{' or '.join(map(str, allowed))}{'' if shape is None else list(shape)}"
    if not isinstance(array, np.ndarray) or rest:  # `rest`: the file is longer than its header says.
        raise DataError(f"{what} unreadable: {path}: not an array in numpy's format")
    if array.dtype not in allowed or (array.ndim != 1 if shape is None else array.shape != shape):
        raise DataError(f"{what} {path}: {array.dtype}{list(array.shape)}, expected {wanted}")
    return array


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: epath.PathLike, what: str) -> Any:
    """Read a JSON file; `what` names it in the error ("dataset metadata").

    Raises:
      DataError: missing or not JSON.
    """
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{what} not found: {path}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} unreadable: {path}: {error}") from error
    except Exception as error:
        if not is_storage_failure(error):
            raise
        raise DataError(f"{what} unreadable: {path}: {reason(error)}") from error


def exists(path: epath.PathLike) -> bool:
    """Whether there is such a file.

    Raises:
      StorageError: the bucket refuses, or does not answer.
    """
    try:
        return epath.Path(path).exists()
    except Exception as error:
        if not is_storage_failure(error):
            raise
        raise StorageError(f"cannot read {path}: {reason(error)}") from error


def forget_listing(folder: epath.PathLike) -> None:
    """Let the client of a bucket list `folder`, and all others, again, after others have written there: it remembers listings."""
    if not is_local(folder):
        epath.backend.fsspec_backend.fs(folder).invalidate_cache()


def is_local(path: epath.PathLike) -> bool:
    """True if `path` is on a local file system (no scheme such as gs://)."""
    return "://" not in os.fspath(path)


_CLIENTS = frozenset(("gcsfs", "aiohttp", "requests", "google", "urllib3"))
"""Packages whose errors are those of a bucket; most are no OSError."""


def is_storage_failure(error: BaseException) -> bool:
    """Whether a disk or a bucket is what failed."""
    return isinstance(error, (OSError, TimeoutError)) or type(error).__module__.partition(".")[0] in _CLIENTS


def reason(error: BaseException) -> str:
    """A failure of storage in one line, a full disk in plain words."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or any(words in str(seen) for words in _FULL):
            return "No space left on device"
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, LacyError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


_FULL = ("No space left on device", "File too large", "Disk quota exceeded")


def check_storage(path: epath.PathLike) -> None:
    """Check that the package that reads `path` is installed.

    Raises:
      LacyError: `path` is in a Google Cloud bucket and gcsfs is missing.
    """
    if os.fspath(path).startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise LacyError(
            f"{path}: buckets need gcsfs, which is not installed: pip install 'lacy_jax[tpu]', or gcsfs alone"
        )

"""A folder that gets its name only when it is complete."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from lacy_jax import files
from lacy_jax.errors import ConfigError, LacyError


def local_path(text: str) -> pathlib.Path:
    """A path from the command line for output that must be local, because the final rename must be atomic.

    Raises:
      ConfigError: it names another storage, such as gs://.
    """
    if not files.is_local(text):
        raise ConfigError(
            f"{text}: this is written to a local folder only; copy it from there when it is finished"
        )
    return pathlib.Path(text)


@contextlib.contextmanager
def finished_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `out`, renamed to `out` when the block ends, removed when it fails.

    A process that is killed leaves `.NAME.XXXXXXXX.partial` behind, which nothing reads and the next call removes.

    Args:
      out: final place.

    Raises:
      ConfigError: `out` exists.
      LacyError: it cannot be written.
    """
    with _hidden(out) as temporary:
        yield temporary
        temporary.rename(out)


@contextlib.contextmanager
def finished_file(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """The same for a single file, which is first written under its name in a temporary folder beside `out`."""
    with _hidden(out) as temporary:
        yield temporary / out.name
        (temporary / out.name).rename(out)


@contextlib.contextmanager
def _hidden(out: pathlib.Path) -> Iterator[pathlib.Path]:
    if out.exists():
        raise ConfigError(f"{out} exists already: remove it or choose another place")
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        for left_behind in out.parent.glob(f".{out.name}.*.partial"):
            shutil.rmtree(left_behind)
        temporary.mkdir(parents=True)
        yield temporary
    except OSError as error:
        raise LacyError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

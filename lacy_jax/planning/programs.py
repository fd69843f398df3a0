"""Compiled steps in a folder, by the hash of what the compiler was given, so that no program is compiled twice.

What is kept is the program itself, not an estimate: a changed clock needs no new compilation.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Mapping

import jax
from etils import epath

from lacy_jax import files
from lacy_jax.planning.ahead import DoesNotFit, Memory
from lacy_jax.planning.links import closed
from lacy_jax.planning.slices import Topology
from lacy_jax.setup import versions

Compiled = tuple[Memory, str] | DoesNotFit | str
"""Memory and HLO text; or how much memory lacks; or why the compiler refused."""

_KEPT = 2  # Raised when what is kept of a program means something else: memory is what the compiler lays out, since 2.
_ENVIRONMENT = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "TPU_LIBRARY_PATH")
_JAX = ("jax_optimization_level", "jax_memory_fitting_level")
"""What JAX tells the compiler beside the options of a step."""


def program_key(lowered: jax.stages.Lowered, options: Mapping[str, str], place: Topology) -> str:
    """SHA-256 of everything that decides what the compiler makes of a step.

    Args:
      lowered: the step.
      options: of the compiler (`training.step.compiler_options`).
      place: what it is compiled for.
    """
    given = {
        "kept": _KEPT,
        "options": dict(options),
        "place": [str(place), closed(place)],
        "versions": {name: versions.version(name) for name in ("jax", "jaxlib", "libtpu")},
        "environment": {name: os.environ.get(name, "") for name in _ENVIRONMENT},
        "jax": {name: str(getattr(jax.config, name)) for name in _JAX},
    }
    return hashlib.sha256(f"{json.dumps(given, sort_keys=True)}\n{lowered.as_text()}".encode()).hexdigest()


class Programs:
    """The programs of one folder. Several searches may share it."""

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)

    def get(self, key: str) -> Compiled | None:
        """What is kept under `key`; None if nothing is, or nothing that can be read: it is then compiled again."""
        try:
            kept = json.loads(gzip.decompress(self._path(key).read_bytes()))
            if "refused" in kept:
                return str(kept["refused"])
            return (
                (Memory(**kept["memory"]), kept["program"])
                if "program" in kept
                else DoesNotFit(**kept["lacks"])
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error):
            return None

    def put(self, key: str, compiled: Compiled) -> None:
        """Keep what the compiler made.

        Raises:
          StorageError: it cannot be written; nothing is left under its name.
        """
        if isinstance(compiled, str):
            kept: dict[str, object] = {"refused": compiled}
        elif isinstance(compiled, DoesNotFit):
            kept = {"lacks": dataclasses.asdict(compiled)}
        else:
            kept = {"memory": dataclasses.asdict(compiled[0]), "program": compiled[1]}
        files.write_bytes(self._path(key), gzip.compress(json.dumps(kept).encode(), mtime=0))

    def _path(self, key: str) -> epath.Path:
        return self._folder / f"{key}.json.gz"

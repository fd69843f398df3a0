"""Safetensors files, single or sharded, written and read tensor by tensor. No other format is read: no pickle, ever."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from lacy_jax import files
from lacy_jax.errors import ConfigError, DataError, LacyError
from lacy_jax.export.extras import require

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def cast(value: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """`value` in a stored dtype.

    Raises:
      ConfigError: an unknown dtype, or a value beyond what float16 holds.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype={dtype}: expected one of {', '.join(DTYPES)}")
    if dtype == "float16" and np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        raise ConfigError(f"--dtype=float16: {name} holds values beyond 65504; use bfloat16")
    return value.astype(DTYPES[dtype])


def write(
    folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: str, shard_bytes: int
) -> list[str]:
    """Write tensors as model.safetensors, or as shards with an index if they exceed `shard_bytes`.

    Args:
      folder: local; exists.
      tensors: (name, float32 array), written in this order; at most one shard is in memory.
      dtype: stored, a key of `DTYPES`.
      shard_bytes: most bytes in a file; a larger tensor gets a file of its own.

    Returns:
      Names of the files.

    Raises:
      ConfigError: `dtype`. LacyError: the disk is full.
    """
    save_file = require("safetensors.numpy").save_file
    shards: list[dict[str, int]] = []
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        if held:
            shards.append({name: value.nbytes for name, value in held.items()})
            try:
                save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
            except Exception as error:
                raise LacyError(f"cannot write {folder}: {error}") from error
            held.clear()

    for name, value in tensors:
        stored = np.ascontiguousarray(cast(value, dtype, name))
        if held and sum(v.nbytes for v in held.values()) + stored.nbytes > shard_bytes:
            flush()
        held[name] = stored
    flush()
    if len(shards) == 1:
        (folder / "shard-1").rename(folder / SINGLE_FILE)
        return [SINGLE_FILE]
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for i, name in enumerate(names, start=1):
        (folder / f"shard-{i}").rename(folder / name)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(sum(shard.values()) for shard in shards)
    files.write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": places})
    return [*names, INDEX_FILE]


class Reader:
    """Tensors of a folder by name; each is read when asked for.

    Args:
      folder: with model.safetensors, or an index and its shards; of both, the single file counts, as in transformers.

    Raises:
      DataError: there are no safetensors, a shard is missing, or a file is cut off or damaged.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._open: dict[str, Any] = {}
        if (folder / SINGLE_FILE).exists():
            self._places = dict.fromkeys(self._file(SINGLE_FILE).keys(), SINGLE_FILE)
        elif (folder / INDEX_FILE).exists():
            index = files.read_json(folder / INDEX_FILE, "safetensors index")
            try:
                self._places = {str(k): str(v) for k, v in index["weight_map"].items()}
            except (KeyError, TypeError, AttributeError):
                raise DataError(f"{folder / INDEX_FILE}: no weight_map; the file is damaged") from None
            for shard in sorted(set(self._places.values())):
                if pathlib.PurePath(shard).name != shard or not (folder / shard).is_file():
                    raise DataError(f"{folder}: shard {shard} is missing; {INDEX_FILE} names it")
                self._file(shard)
        else:
            pickles = (
                sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES) if folder.is_dir() else []
            )
            hint = f"; {pickles[0]} is a pickle, which is never loaded: convert it first" if pickles else ""
            raise DataError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} found{hint}")

    def names(self) -> list[str]:
        """All tensors."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._file(self._place(name)).get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor, float32.

        Raises:
          DataError: it is missing, or cannot be read.
        """
        place = self._place(name)
        try:
            return np.asarray(self._file(place).get_tensor(name)).astype(np.float32)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{self.folder / place}: tensor {name} cannot be read: {error}") from error

    def _place(self, name: str) -> str:
        if name not in self._places:
            raise DataError(f"{self.folder}: tensor {name} is missing")
        return self._places[name]

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = require("safetensors").safe_open(self.folder / name, framework="numpy")
            except LacyError:
                raise
            except Exception as error:
                raise DataError(f"{self.folder / name} is damaged or cut off: {error}") from error
        return self._open[name]


def sha256(path: pathlib.Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

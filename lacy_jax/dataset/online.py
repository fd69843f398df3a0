"""Labels made while training reads the text, instead of the stored ones (`labels.online`).

This is for trying another labeller on an existing dataset, or for preparing one fast with a cheap labeller. The labels
are bit for bit those that `lacy prepare` would have stored with that labeller: the same code makes them from the same
text, which a lossless tokenizer decodes exactly.
"""

from __future__ import annotations

import collections
import dataclasses
import threading

import ml_collections
import numpy as np

from lacy_jax.corpus.document import Document
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.shard import make_record
from lacy_jax.dataset.source import RecordSource
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.labels import LABELLERS, get_labeller
from lacy_jax.run_files import TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer

_KEPT = 256
"""Labelled documents kept in memory: a long one fills several rows, which are often read close to each other."""
_PROBE = " two  spaces,\ttab,\nline ﬁ Å ends "
"""A text that a tokenizer with a lossy normaliser does not decode unchanged."""


class OnlineLabels(RecordSource):
    """The records of a split with labels made on reading; thread-safe.

    Attributes:
      metadata: that of the dataset, but with the online labeller's name and version. Its fingerprint therefore
        differs, and a run cannot be resumed with other labels unnoticed.
    """

    def __init__(self, source: RecordSource, config: ml_collections.ConfigDict):
        """
        Raises:
          ConfigError: the labeller needs more than text (exact labels that come with the corpus).
          DataError: the tokenizer is lossy, or the labeller is not installed.
        """
        self.__dict__.update(source.__dict__)
        self._tokenizer = Tokenizer.load(source.path / TOKENIZER_FILE)
        if self._tokenizer.decode(self._tokenizer.encode(_PROBE)) != _PROBE:
            raise DataError(
                f"dataset {source.path}: its tokenizer loses spaces or letters, so the text cannot be labelled again: "
                "set --config.labels.online=false and prepare the data with the labeller you want"
            )
        kind = source.metadata.parameters.get("corpus.kind", "")
        self._labeller = get_labeller(config, kind)
        if self._labeller.name in LABELLERS and LABELLERS[self._labeller.name].corpus:
            raise ConfigError(
                "config.labels.online: exact labels are not in the text; choose another labels.labeller, "
                "or set --config.labels.online=false"
            )
        self.metadata = dataclasses.replace(
            source.metadata, labeller=self._labeller.name, labeller_version=self._labeller.version
        )
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[int, Record] = collections.OrderedDict()

    def __getitem__(self, index: int) -> Record:
        """Record `index`.

        Raises:
          DataError: the record is corrupt, or its tokens are not those that the tokenizer gives for its text.
        """
        with self._lock:  # Labellers have internal state.
            if index not in self._kept:
                self._kept[index] = self._label(super().__getitem__(index))
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[index]

    def _label(self, stored: Record) -> Record:
        document = Document(
            stored.id, self._tokenizer.decode(stored.tokens[self._tokenizer.body]), stored.title
        )
        made = make_record(document, self._tokenizer, self._labeller)
        if not np.array_equal(made.tokens, stored.tokens):
            raise DataError(
                f"dataset {self.path}, document {stored.id!r}: its tokens are not those of its text; "
                "prepare the dataset again"
            )
        return dataclasses.replace(stored, labels={**stored.labels, **made.labels})

"""The bundled labeller: tokenizer, tagger and full rules, at tens of thousands of words a second per core."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt64

from lacy_jax.corpus.document import Document
from lacy_jax.errors import DataError
from lacy_jax.labels.parse import Parse
from lacy_jax.labels.spacy_rules import RULES_VERSION, identity, label_parse
from lacy_jax.labels.spans import Labels
from lacy_jax.labels.tagger.classes import CHOICE_VERSION, most_likely, parse_of_classes
from lacy_jax.labels.tagger.network import FEATURES, Network, Shape, Weights
from lacy_jax.labels.tagger.pipeline import weights_of

BUNDLED = pathlib.Path(__file__).with_name("model")
"""The spaCy pipeline that comes with the package."""
_STRINGS = 1_000_000
"""Distinct strings after which the pipeline is loaded afresh, because spaCy's vocabulary never forgets. A memory zone
for each text, as the full pipeline uses, would cost a third of the tokenizer's speed here."""


class BundledLabeller:
    """Labels by the rules of `spacy_rules`, on the classes that our compact tagger predicts.

    Picklable; each process loads the pipeline once. A text's labels depend only on the text, its title and the
    version: not on what was labelled before, nor on how documents are spread over processes.
    """

    def __init__(self, path: str | pathlib.Path = BUNDLED):
        """
        Args:
          path: folder of a pipeline made by `python -m lacy_jax.labels.tagger.train`; default: the bundled one.

        Raises:
          DataError: spaCy is not installed, or there is no such pipeline in `path`.
        """
        self._path = pathlib.Path(path)
        self._load()
        weights, shape = weights_of(self._nlp)
        self._network = Network(weights, shape)
        name, version = identity(self._nlp)
        rules = f"{RULES_VERSION}.{CHOICE_VERSION}"
        if self._path == BUNDLED:  # Its version already includes a hash of its weights.
            self.name, self.version = "bundled", f"{rules}+{self._nlp.meta['version']}"
        else:
            self.name, self.version = f"bundled:{name}", f"{rules}+{version}"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def label(self, document: Document) -> Labels:
        """Labels of one document."""
        return label_parse(self.parse(document.text), document.title)

    def parse(self, text: str) -> Parse:
        """The tagger's prediction for a text, in the form that the rules read."""
        return self.read(text)[0]

    def read(self, text: str) -> tuple[Parse, UInt64[np.ndarray, "n features"]]:
        """`parse`, and the `FEATURES` of its words."""
        doc = self._nlp.tokenizer(text)
        places = doc.to_array(["IDX", "LENGTH"]).astype(np.int64)
        spans = list(zip(places[:, 0].tolist(), places.sum(1).tolist()))
        attributes = doc.to_array(list(FEATURES))
        classes = [best for scores in self._network.scores(attributes) for best in most_likely(scores)]
        if len(self._nlp.vocab.strings) > _STRINGS:
            self._load()
        return parse_of_classes(text, spans, classes), attributes

    @property
    def weights(self) -> tuple[Weights, Shape]:
        """Those of its network."""
        return weights_of(self._nlp)

    def _load(self) -> None:
        try:
            import spacy
        except ImportError:
            raise DataError(
                "labeller bundled: spaCy is not installed: pip install 'lacy_jax[labels]', or set "
                "--config.labels.labeller=rules"
            ) from None
        try:
            self._nlp = spacy.load(self._path)
        except Exception as error:  # Of a damaged folder spaCy raises almost anything.
            raise DataError(
                f"labeller bundled: no spaCy {spacy.__version__} pipeline in {self._path}; make one with "
                "python -m lacy_jax.labels.tagger.train, or set --config.labels.labeller=rules"
            ) from error

"""Labellers by name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pathlib

import ml_collections

from lacy_jax.corpus.document import Document
from lacy_jax.errors import ConfigError
from lacy_jax.labels.layout import content_words
from lacy_jax.labels.rules import RuleLabeller
from lacy_jax.labels.spacy_rules import SpacyLabeller
from lacy_jax.labels.spans import Labeller, Labels
from lacy_jax.labels.tagger import BundledLabeller

LABELLERS = ("auto", "spacy", "bundled", "rules", "world")
ENTRY_POINTS = "lacy_jax.labellers"
"""Entry-point group in which a package registers labellers of its own: `name = package.module:Class`."""


class WorldLabeller:
    """The exact labels of the synthetic world: the first mention of each fact a document states."""

    name = "world"
    version = "2"

    def label(self, document: Document) -> Labels:
        """Labels from `document.facts`; the free words around them count as neither factual nor grammatical."""
        facts = sorted(document.facts, key=lambda fact: fact.start)
        factual = tuple((fact.start, fact.end) for fact in facts)
        return Labels(
            factual=factual,
            nongrammatical=tuple(content_words(document.text, factual)),
            reasons=tuple(fact.attribute for fact in facts),
        )


def get_labeller(config: ml_collections.ConfigDict, corpus_kind: str) -> Labeller:
    """The labeller of a run.

    `config.labels.labeller` is one of `LABELLERS`, the name under which an installed package registered one of
    its own (`ENTRY_POINTS`), or "package.module:Class" (built without arguments). "auto" means the exact labels for the synthetic world; else the full rules on
    `config.labels.spacy_model` where that is installed; else on the bundled tagger where spaCy is; else the model-free
    rules. "bundled:FOLDER" is a tagger of one's own (`lacy_jax.labels.tagger.train`).

    Raises:
      ConfigError: an unknown name, a class that cannot be imported, or exact labels for a real corpus.
      DataError: spaCy or its model is not installed (only if asked for by name).
    """
    name = config.labels.labeller
    if name == "auto":
        name = "world" if corpus_kind == "world" else _best_installed(config.labels.spacy_model)
    if name == "world":
        if corpus_kind != "world":
            raise ConfigError(
                f"config.labels.labeller = 'world': exact labels exist only for corpus.kind world, not {corpus_kind}"
            )
        return WorldLabeller()
    if name == "rules":
        return RuleLabeller()
    if name == "spacy":
        return SpacyLabeller(config.labels.spacy_model)
    if name.partition(":")[0] == "bundled":
        return BundledLabeller(*name.split(":", 1)[1:])
    return _own_labeller(name)


def _best_installed(model: str) -> str:
    if not _installed("spacy"):
        return "rules"
    return "spacy" if _installed(model) else "bundled"


def _own_labeller(name: str) -> Labeller:
    """One from elsewhere: registered by an installed package, or named by module and class."""
    registered = {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    module, colon, attribute = registered.get(name, name).partition(":")
    if not colon:
        raise ConfigError(
            f"config.labels.labeller = {name!r}: expected one of {', '.join([*LABELLERS, *sorted(registered)])}, "
            "or package.module:Class"
        )
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"config.labels.labeller = {name!r}: {error}") from error


def _installed(name: str) -> bool:
    """Whether a package, or a pipeline's folder, is there."""
    return importlib.util.find_spec(name) is not None if name.isidentifier() else pathlib.Path(name).is_dir()

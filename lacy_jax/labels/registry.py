"""Labellers by name."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Callable

import ml_collections

from lacy_jax.corpus.document import Document
from lacy_jax.default_config import get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.labels.layout import content_words
from lacy_jax.labels.rules import RuleLabeller
from lacy_jax.labels.source_code import SourceCodeLabeller
from lacy_jax.labels.spacy_rules import SpacyLabeller
from lacy_jax.labels.spans import Labeller, Labels
from lacy_jax.labels.tagger import BundledLabeller
from lacy_jax.labels.windows import counted
from lacy_jax.registry import Registry


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


class LookupLabeller:
    """What the corpus marks as looked up, and nothing else: in LMLM's text, and in the texts of `lacy synthesise`."""

    name = "lookups"
    version = "1"

    def label(self, document: Document) -> Labels:
        """Labels from `document.judge`; other content words count as neither factual nor grammatical."""
        factual = document.judge or ()
        return Labels(factual=factual, nongrammatical=tuple(content_words(document.text, factual)))


@dataclasses.dataclass(frozen=True)
class LabellerKind:
    """One way to name a labeller.

    Attributes:
      name: how `config.labels.labeller` begins.
      form: how the whole value is written.
      description: one line for help texts and docs.
      open: (text after the colon, the config group `labels`, `corpus.kind`) -> the labeller.
      corpus: the only `corpus.kind` whose documents come with what it needs beside their text; "" = the text is enough.
    """

    name: str
    form: str
    description: str
    open: Callable[[str, ml_collections.ConfigDict, str], Labeller] = dataclasses.field(repr=False)
    corpus: str = ""


class _Labellers(Registry[LabellerKind]):
    """Also accepts classes that are not registered, given as "package.module:Class"."""

    def named(self, value: str, field: str = "") -> LabellerKind:
        module, colon, _ = value.partition(":")
        if not colon or module in self:
            return super().named(value, field)
        return LabellerKind(module, *_CLASS, lambda argument, config, corpus_kind: _own_labeller(value))

    def table(self) -> list[tuple[str, str]]:
        return [*super().table(), _CLASS]


_CLASS = ("package.module:Class", "a class of your own, built without arguments")


def _auto(argument: str, config: ml_collections.ConfigDict, corpus_kind: str) -> Labeller:
    name = "world" if corpus_kind == "world" else _best_installed(config.spacy_model)
    return LABELLERS[name].open("", config, corpus_kind)


def _annotator(argument: str, config: ml_collections.ConfigDict, corpus_kind: str) -> Labeller:
    # Imported here, because it is also a command, and Python warns of one that its package has imported before.
    from lacy_jax.labels.annotator import Annotator

    return Annotator(argument)


LABELLERS = _Labellers("labeller", (
    LabellerKind("auto", "auto", "world for the synthetic world; else spacy if the default pipeline is installed or `labels.spacy_model` names another; else bundled if spaCy is installed; else rules", _auto),
    LabellerKind("world", "world", "the exact facts of the synthetic world; only for `corpus.kind` world",
                 lambda argument, config, corpus_kind: WorldLabeller(), "world"),
    LabellerKind("lookups", "lookups", "what the corpus marks as looked up, LMLM's annotations or the facts of `lacy synthesise`; only for `corpus.kind` lmlm",
                 lambda argument, config, corpus_kind: LookupLabeller(), "lmlm"),
    LabellerKind("spacy", "spacy", "the full rules on an installed pipeline, `labels.spacy_model` (en_core_web_sm, _md, _lg, _trf, 3.x)",
                 lambda argument, config, corpus_kind: SpacyLabeller(config.spacy_model)),
    LabellerKind("bundled", "bundled[:FOLDER]", "the full rules on the bundled compact tagger, or on one of your own; needs spaCy, but no pipeline",
                 lambda argument, config, corpus_kind: BundledLabeller(*[argument] * bool(argument))),
    LabellerKind("annotator", "annotator:FILE", "what an LLM would look up, by a compact network of `python -m lacy_jax.labels.annotator`; needs spaCy, but no pipeline",
                 _annotator),
    LabellerKind("rules", "rules", "regular expressions and keyword lists; needs nothing",
                 lambda argument, config, corpus_kind: RuleLabeller()),
    LabellerKind("python-source", "python-source", "Python source: names that the file does not define itself, numbers, modules",
                 lambda argument, config, corpus_kind: SourceCodeLabeller()),
))  # fmt: skip


def get_labeller(config: ml_collections.ConfigDict, corpus_kind: str) -> Labeller:
    """The labeller of a run.

    Args:
      config: the run's config; `labels.labeller` is one of `LABELLERS`, or "package.module:Class", and
        `labels.first_mention` one of `FIRST_MENTIONS`.

    Raises:
      ConfigError: the name is unknown, the class cannot be imported, or it labels another kind of corpus only.
      DataError: spaCy or its model is not installed, and was asked for by name.
    """
    spec = config.labels.labeller
    kind = LABELLERS.named(spec)
    if kind.corpus not in ("", corpus_kind):
        raise ConfigError(
            f"config.labels.labeller = {spec!r}: exact labels exist only for corpus.kind {kind.corpus}, not {corpus_kind}"
        )
    labeller = kind.open(spec.partition(":")[2], config.labels, corpus_kind)
    return counted(labeller, config.labels.first_mention)


def _best_installed(model: str) -> str:
    if model != get_default_config().labels.spacy_model:
        return "spacy"  # Asked for by name, so it is an error if it is missing.
    if not is_installed("spacy"):
        return "rules"
    return "spacy" if is_installed(model) else "bundled"


def _own_labeller(name: str) -> Labeller:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"config.labels.labeller = {name!r}: {error}") from error


def is_installed(name: str) -> bool:
    """Whether a package is installed, or a pipeline's folder exists."""
    return importlib.util.find_spec(name) is not None if name.isidentifier() else pathlib.Path(name).is_dir()

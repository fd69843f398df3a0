"""Partners: who is asked when the model calls. Texts so far in, continuations out.

A partner sees text, never tokens or CALL, so it may have another tokenizer or none. It may answer "" (it has
nothing to say; the model goes on with its own token) and cannot end a text: that is the model's decision.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lacy_jax.corpus import World
from lacy_jax.default_config import REACHES
from lacy_jax.errors import ConfigError
from lacy_jax.labels.keywords import FUNCTION_WORDS
from lacy_jax.labels.layout import ends_with_abbreviation
from lacy_jax.registry import Registry

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")
_WORD = re.compile(r"\s*\S+")
_INITIALS = re.compile(r"\b(?:[A-Z]\.){2,}$|\b(?:Jr|Sr|Inc|Ltd|Co)\.$")
"""Initials and abbreviations that end in a point of their own, not the sentence's."""
CONNECTORS = frozenset("of the de del della di da du la le von van der den zu al ibn bin y e".split())
"""Lower-case words that may stand inside a name."""
MARKS = ".,;:!?()"
"""Characters that end a phrase."""


class Partner(abc.ABC):
    """Who is asked. A partner must implement `complete`; everything else has defaults.

    Attributes:
      name: in records, errors and reports.
      reach: how much one call returns (`config.generate.partner_reach`). Calls may be made inside a word only if it is
        "token"; otherwise a partner is asked where the model is about to begin a word.
      parallel: whether several threads may call `complete` at once; if not, each call waits for the one before.
      by_query: whether it is asked by the vectors of the model's query head (`complete_by_query`), not by text alone.
    """

    name: str
    reach: str = "span"
    parallel: bool = False
    by_query: bool = False

    @abc.abstractmethod
    def complete(self, texts: Sequence[str]) -> Sequence[str | None]:
        """Continuations, one per text (prompt and text so far), with a leading space where a word begins.

        None = this text alone has no answer (its request failed): the model goes on, and the failure is recorded.

        Raises:
          PartnerError: it failed; the texts go on without it, or generation stops, as the caller chose.
        """

    def complete_by_query(
        self, texts: Sequence[str], queries: Float32[np.ndarray, "n Q"]
    ) -> Sequence[str | None]:
        """`complete`, told also what the model asks for: the unit vectors of its query head where it calls."""
        return self.complete(texts)

    def asked_by(self, head: str) -> None:  # noqa: B027
        """Told, before a job, which query head (`dense_index.head_name`) the queries will be of."""

    def typical_texts(self) -> list[str]:
        """Typical answers, for the controller's first estimate of a call's cost; none = it learns by itself."""
        return []

    def expect(self, prompts: Sequence[str], new_tokens: int) -> None:  # noqa: B027
        """Called before a job: texts will continue `prompts` by up to `new_tokens` of the caller's tokens."""

    def only_facts(self) -> Partner:
        """The same partner, silent where no fact is asked for: what the gate "oracle" needs.

        Raises:
          ConfigError: it does not know where facts are.
        """
        known = ", ".join(kind.form for kind in PARTNERS.values() if kind.knows_facts)
        raise ConfigError(
            f"gate 'oracle': partner {self.name} does not know where facts begin; use one of {known}"
        )

    def used(self) -> tuple[int, float]:
        """(tokens read and written so far, floating-point operations for them); 0 where it does not count them."""
        return 0, 0.0

    def close(self) -> None:  # noqa: B027
        """Release files and connections."""


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a partner may need to be opened.

    Attributes:
      spec: `config.generate.partner`.
      reach: how much one call may return.
      world: the synthetic world, if the corpus is one.
      load_run: opens a run directory. open_folder: opens a Hugging Face folder or GGUF file with a given context length
        (0 = its own). Both return something with `model` and `tokenizer`.
      rows: how many texts at a time (the batch size of generation).
    """

    spec: str
    reach: str = "span"
    world: World | None = None
    load_run: Callable[[str], Any] | None = None
    open_folder: Callable[[str, int], Any] | None = None
    rows: int = 16

    def refuse(self, why: str) -> ConfigError:
        """The error for a spec that cannot be opened."""
        return ConfigError(f"config.generate.partner = {self.spec!r}: {why}")


@dataclasses.dataclass(frozen=True)
class PartnerKind:
    """One way to name a partner.

    Attributes:
      name: what `config.generate.partner` begins with. form: the form of the whole, such as "database:FILE".
      description: one line for help texts and docs.
      open: (the part after the colon, `Opening`) -> the partner.
      knows_facts: its partners support `only_facts`.
    """

    name: str
    form: str
    description: str
    open: Callable[[str, Opening], Partner | None] = dataclasses.field(repr=False)
    knows_facts: bool = False


PARTNERS: Registry[PartnerKind] = Registry("partner", (
    PartnerKind("none", "none", "nobody: the model writes alone", lambda where, opening: None),
))  # fmt: skip


def get_partner(spec: str, **options: Any) -> Partner | None:
    """The partner that `config.generate.partner` names; None for "none".

    Args:
      spec: one of the forms of `PARTNERS`.
      options: fields of `Opening`.

    Raises:
      ConfigError: the partner or reach is unknown, or impossible with this corpus.
      DataError: the files it is made from are missing or damaged.
    """
    opening = Opening(spec, **options)
    check_reach(opening.reach)
    return PARTNERS.named(spec).open(spec.partition(":")[2], opening)


def partner_behind(where: str, opening: Opening) -> tuple[str, Partner | None]:
    """The two parts of "PATH[,PARTNER]": the path, and the partner, opened.

    Raises:
      the errors of `get_partner`.
    """
    path, comma, spec = where.partition(",")
    if not comma:
        return path, None
    return path, PARTNERS.named(spec).open(spec.partition(":")[2], dataclasses.replace(opening, spec=spec))


def needs_head(partner: str) -> ConfigError:
    """The error for a partner that is asked by a query head where there is none."""
    return ConfigError(
        f"partner {partner}: it is asked by the model's query head, and this model has none (config.model.query_dim = 0)"
    )


def cut(text: str, reach: str) -> str:
    """The part of a continuation that one call returns: the first word or mark, the first word, or all of it."""
    if reach == "span":
        return text
    match = (_TOKEN if reach == "token" else _WORD).match(text)
    return match[0] if match else text


def first_span(text: str) -> str:
    """The first phrase of a continuation: a word and those after it that begin with a capital or digit.

    "of", "von" and the like may stand between them. The phrase ends before a mark, except for the point of an initial
    or abbreviation. This is the fact span for a partner without labels: " 7 May 1956 in Paris." gives " 7 May 1956",
    " U.S. Navy from" gives " U.S. Navy".
    """
    end, last = 0, ""
    for match in _WORD.finditer(text):
        word = match[0].strip()
        if end and word in CONNECTORS:
            continue
        if end and not (word[0].isupper() or word[0].isdigit()):
            break
        # "in the U.S. He": the point also ends the sentence.
        if _INITIALS.search(last) and word.rstrip(MARKS).lower() in FUNCTION_WORDS:
            break
        end, last = match.end(), word
        if word[-1] in MARKS and not ends_with_abbreviation(word):
            break
    span = text[:end]
    return (span if _INITIALS.search(span) else span.rstrip(MARKS)) or cut(text, "word")


def check_reach(reach: str) -> str:
    """Raises ConfigError unless `reach` is one of `REACHES`."""
    return REACHES.named(reach).name


def calls_anywhere(partner: Partner | None) -> bool:
    """Whether calls may be made inside a word: only with a partner that returns single tokens (the paper).

    A partner that returns words or spans is asked where the model is about to begin a word. Inside a word, or
    before the mark that ends it, it could only finish what the model has begun, and the gate is high exactly
    where the model is inside a fact that it has already got wrong.
    """
    return partner is not None and partner.reach == "token"

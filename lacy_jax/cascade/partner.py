"""Partners: who is asked when the model calls. One protocol: texts so far in, continuations out.

A partner sees text, never tokens or CALL, so it may have another tokenizer or none. It may answer "" (it has
nothing to say; the model goes on with its own token) and cannot end a text: that is the model's decision.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from lacy_jax.corpus import World
from lacy_jax.errors import ConfigError

REACHES = ("token", "word", "span")
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")
_WORD = re.compile(r"\s*\S+")
CONNECTORS = frozenset("of the de del della di da du la le von van der den zu al ibn bin y e".split())
"""Words in lower case that a name may have inside."""
MARKS = ".,;:!?()"
"""Characters that end a phrase."""


@runtime_checkable
class Partner(Protocol):
    """What `generate` needs of a partner."""

    name: str

    def complete(self, texts: Sequence[str]) -> Sequence[str | None]:
        """Continuations, one per text (prompt and text so far), with the leading space where a word begins.

        None = no answer to this text alone (a request that failed): the model goes on, and it is recorded.

        Raises:
          PartnerError: it failed; the texts go on without it, or generation stops, as the caller chose.
        """


def cut(text: str, reach: str) -> str:
    """The part of a continuation that one call returns: the first word or mark, the first word, or all of it."""
    if reach == "span":
        return text
    match = (_TOKEN if reach == "token" else _WORD).match(text)
    return match[0] if match else text


def first_span(text: str) -> str:
    """The first phrase of a continuation: a word and those after it that begin with a capital or digit.

    "of", "von" and the like may stand between them; the phrase ends before a mark. This is the fact span of a
    partner that has no labels: " 7 May 1956 in Paris." gives " 7 May 1956".
    """
    end = 0
    for match in _WORD.finditer(text):
        word = match[0].strip()
        if end and word in CONNECTORS:
            continue
        if end and not (word[0].isupper() or word[0].isdigit()):
            break
        end = match.end()
        if word[-1] in MARKS:
            break
    return text[:end].rstrip(MARKS) or cut(text, "word")


def check_reach(reach: str) -> str:
    """Raises ConfigError unless `reach` is one of `REACHES`."""
    if reach not in REACHES:
        raise ConfigError(f"partner reach {reach!r}: expected one of {', '.join(REACHES)}")
    return reach


class FactTablePartner:
    """The exact fact table of the synthetic world, as a partner that knows every fact and speaks the
    language.

    Where the text is about to state a fact (or is inside one), it returns the rest of the value. Anywhere
    else a
    call is wasted, as with any partner: it costs budget and returns the next ordinary words.

    Args:
      world: the world the texts are about.
      reach: "token" (a word or a mark; a table has no tokenizer), "word", or "span" (the whole value; of
        ordinary text still one word at a time).
      only_facts: be silent where no fact is asked for.
    """

    name = "world"

    def __init__(self, world: World, reach: str = "span", *, only_facts: bool = False):
        self.world = world
        self._only_facts = only_facts
        self.reach = check_reach(reach)
        # The same text is often asked about by several gates and budgets.
        self._answer = functools.lru_cache(maxsize=1 << 16)(self._complete_one)

    def complete(self, texts: Sequence[str]) -> list[str]:
        """See `Partner.complete`; never fails."""
        return [self._answer(text) for text in texts]

    def typical_texts(self) -> list[str]:
        """Answers as they typically are: the controller's first idea of what a call costs."""
        return [cut(" " + value, self.reach) for _, _, value in itertools.islice(self.world.table(), 600)]

    def _complete_one(self, text: str) -> str:
        fact = self.world.complete(text)
        if not fact and self._only_facts:
            return ""
        return cut(self.world.next_text(text), self.reach) if not fact else cut(fact, self.reach)

    def only_facts(self) -> FactTablePartner:
        """The same table, silent where no fact is asked for."""
        return FactTablePartner(self.world, self.reach, only_facts=True)


def only_facts(partner: Partner) -> Partner:
    """The partner as the gate "oracle" needs it: it answers where a fact is asked for, and nowhere else.

    Raises:
      ConfigError: it does not know where facts are.
    """
    silent = getattr(partner, "only_facts", None)
    if silent is None:
        raise ConfigError(
            f"gate 'oracle': partner {partner.name} does not know where facts begin; use world or database:FILE"
        )
    return silent()


def calls_anywhere(partner: Partner | None) -> bool:
    """Whether calls may be made inside a word: only of a partner that returns single tokens (the paper).

    One that returns words or spans is asked where the model is about to begin a word. Inside a word, or
    before the mark that ends it, it could only finish what the model has begun, and the gate is high exactly
    there where the model is inside a fact that it has already got wrong.
    """
    return getattr(partner, "reach", "span") == "token"


def get_partner(
    spec: str,
    *,
    reach: str = "span",
    world: World | None = None,
    load_run: Callable[[str], Any] | None = None,
    open_folder: Callable[[str, int], Any] | None = None,
    rows: int = 16,
) -> Partner | None:
    """The partner that `config.generate.partner` names.

    Args:
      spec: "none"; "world"; "checkpoint:RUN_DIR"; "hf:FOLDER#CONTEXT", a local Hugging Face folder (without #CONTEXT
        as much as the model knows, at most 4,096 tokens); "http://HOST:PORT/v1#MODEL", a completions server (https
        too; without #MODEL the first it lists); "database:FACTS.db" (`FactDatabase.build`); "documents:PATH",
        a JSONL corpus or a folder of `PassageIndex.save`, extractive; "documents:PATH,SPEC", the same with
        the passages shown to the partner SPEC.
      reach: how much one call may return: token, word or span.
      world: the synthetic world, for "world".
      load_run: opens a run directory; what it returns has `model` and `tokenizer`.
      open_folder: opens a Hugging Face folder with a context (0 = its own); what it returns has `model` and `tokenizer`.
      rows: texts a checkpoint partner keeps in its KV cache, requests a server gets at a time; the batch size
        of generation.

    Raises:
      ConfigError: an unknown partner or reach, or one that this corpus cannot have.
      DataError: documents or a database that are missing or damaged.
    """
    check_reach(reach)
    kind, _, where = spec.partition(":")
    if spec == "none":
        return None
    if spec == "world":
        if world is None:
            raise ConfigError(
                "config.generate.partner = 'world': only runs on corpus.kind = 'world' have a fact table"
            )
        return FactTablePartner(world, reach)
    if kind in ("checkpoint", "hf") and where:
        from lacy_jax.cascade.checkpoint_partner import CheckpointPartner

        found = _opened(spec, kind, where, load_run, open_folder)
        return CheckpointPartner(found.model, found.tokenizer, reach, rows=rows, name=spec)
    if kind in ("http", "https"):
        from lacy_jax.cascade.completions_partner import CompletionsPartner
        from lacy_jax.completions import CompletionsClient

        url, _, model = spec.partition("#")
        return CompletionsPartner(CompletionsClient(url, model, concurrency=rows), reach)
    if kind == "database" and where:
        from lacy_jax.cascade.database_partner import DatabasePartner
        from lacy_jax.cascade.fact_database import FactDatabase

        return DatabasePartner(FactDatabase(where), reach)
    if kind == "documents" and where:
        from lacy_jax.cascade.document_partner import DocumentPartner
        from lacy_jax.cascade.passages import open_index

        path, comma, behind = where.partition(",")
        through = (
            get_partner(
                behind, reach=reach, world=world, load_run=load_run, open_folder=open_folder, rows=rows
            )
            if comma
            else None
        )
        return DocumentPartner(open_index(path), reach, through=through)
    raise ConfigError(
        f"config.generate.partner = {spec!r}: expected none, world, checkpoint:RUN_DIR, hf:FOLDER, http://HOST:PORT/v1#MODEL, "
        "documents:PATH, documents:PATH,PARTNER or database:FILE"
    )


def _opened(
    spec: str,
    kind: str,
    where: str,
    load_run: Callable[[str], Any] | None,
    open_folder: Callable[[str, int], Any] | None,
) -> Any:
    """What has the `model` and `tokenizer` of a run or of a Hugging Face folder."""
    if kind == "checkpoint" and load_run is not None:
        return load_run(where)
    if kind == "hf" and open_folder is not None:
        folder, _, context = where.partition("#")
        if context and not (context.isdecimal() and int(context)):
            raise ConfigError(f"config.generate.partner = {spec!r}: #{context} is no number of tokens")
        return open_folder(folder, int(context or 0))
    raise ConfigError(f"config.generate.partner = {spec!r}: it cannot be opened here")

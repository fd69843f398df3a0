"""The fact table of the synthetic world as partner."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from lacy_jax.cascade.partners.base import PARTNERS, Opening, Partner, PartnerKind, check_reach, cut
from lacy_jax.corpus import World


class FactTablePartner(Partner):
    """The exact fact table of the synthetic world, as a partner that knows every fact and can also write ordinary text.

    Where the text is about to state a fact (or is inside one), it returns the rest of the value. Anywhere else a call
    is wasted, as with any partner: it costs budget and returns the next ordinary words.

    Args:
      world: the world the texts are about.
      reach: "token" (a word or a mark; a table has no tokenizer), "word", or "span" (the whole value; for
        ordinary text still one word at a time).
      only_facts: be silent where no fact is asked for.
    """

    name = "world"

    def __init__(self, world: World, reach: str = "span", *, only_facts: bool = False):
        self.world = world
        self._only_facts = only_facts
        self.reach = check_reach(reach)
        # Several gates and budgets often ask about the same text.
        self._answer = functools.lru_cache(maxsize=1 << 16)(self._complete_one)

    def complete(self, texts: Sequence[str]) -> list[str]:
        """See `Partner.complete`; never fails."""
        return [self._answer(text) for text in texts]

    def typical_texts(self) -> list[str]:
        """Values of the table."""
        return [cut(" " + value, self.reach) for _, _, value in itertools.islice(self.world.table(), 600)]

    def _complete_one(self, text: str) -> str:
        fact = self.world.complete(text)
        if not fact and self._only_facts:
            return ""
        return cut(self.world.next_text(text), self.reach) if not fact else cut(fact, self.reach)

    def only_facts(self) -> FactTablePartner:
        """The same table, silent where no fact is asked for."""
        return FactTablePartner(self.world, self.reach, only_facts=True)


def _open(where: str, opening: Opening) -> FactTablePartner:
    if opening.world is None:
        raise opening.refuse("only runs on corpus.kind = 'world' have a fact table")
    return FactTablePartner(opening.world, opening.reach)


PARTNERS.add(
    PartnerKind("world", "world", "the exact fact table of the synthetic world", _open, knows_facts=True)
)

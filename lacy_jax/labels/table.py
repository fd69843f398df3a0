"""All rules in one table: what fires each rule, which labellers have it, and an example.

The rules read their entity types from here, docs/labels.md shows the table as `python -m lacy_jax.labels.table` prints
it, and the tests label every example. In an example, [[this]] is factual and nothing else is. The paper names the
ingredients only (arXiv:2602.12005 §3); the rules are ours.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from lacy_jax.labels.spans import Span

Kind = Literal["entity", "word", "shape", "never"]
"""entity: a named entity of the pipeline. word: a word that no entity covers. shape: found by regular expressions,
without a model. never: text that states nothing, whatever else fires."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
      name: recorded as the reason of the spans it makes (a rule of kind "never" makes none).
      kind: what it looks at.
      fires: what it fires on, in words.
      example: a text in which only this rule fires.
      title: the subject of the example, "" if it has none.
      full, free: whether the full rules (`spacy`, `bundled`) and the model-free rules (`rules`) have it.
    """

    name: str
    kind: Kind
    fires: str
    example: str
    title: str = ""
    full: bool = True
    free: bool = False

    def marked(self) -> tuple[str, tuple[Span, ...]]:
        """The example as text, and its factual spans."""
        text, spans = "", []
        for part in re.split(r"(\[\[.*?\]\])", self.example):
            inner = part[2:-2] if part.startswith("[[") else part
            if inner is not part:
                spans.append((len(text), len(text) + len(inner)))
            text += inner
        return text, tuple(spans)


def _entity(name: str, fires: str, example: str) -> Rule:
    return Rule(name, "entity", fires, example)


def _word(name: str, fires: str, example: str) -> Rule:
    return Rule(name, "word", fires, example, free=True)


def _shape(name: str, fires: str, example: str) -> Rule:
    return Rule(name, "shape", fires, example, full=False, free=True)


def _never(name: str, fires: str, example: str, title: str = "") -> Rule:
    return Rule(name, "never", fires, example, title, free=True)


RULES: tuple[Rule, ...] = (
    _entity("PERSON", "people, also fictional ones", "She was taught by [[Edward Elgar]]."),
    _entity("NORP", "nationalities, religions, political groups", "He married a [[Swedish]] woman."),
    _entity("GPE", "countries, cities, states", "She moved to [[Oslo]]."),
    _entity("LOC", "other places: mountains, seas, regions", "They sailed across the [[Baltic Sea]]."),
    _entity("FAC", "buildings, roads, bridges", "The street ends at the [[Brooklyn Bridge]]."),
    _entity("ORG", "companies, agencies, teams, schools", "He studied at the [[University of Vermont]]."),
    _entity("PRODUCT", "vehicles, weapons, software", "He flew an [[F-16]]."),
    _entity("EVENT", "wars, battles, competitions", "He was killed during [[World War II]]."),
    _entity("WORK_OF_ART", "books, songs, films", 'He wrote "[[War and Peace]]".'),
    _entity("LAW", "documents made into laws", "He was tried under the [[Espionage Act]]."),
    _entity("LANGUAGE", "named languages", "The book was translated into [[English]]."),
    _entity("DATE", "dates and periods with something definite in them", "She died on [[7 November 1934]]."),
    _entity("TIME", "times shorter than a day", "It lasts [[90 minutes]]."),
    _entity("PERCENT", "percentages", "It fell by [[12 percent]]."),
    _entity("MONEY", "amounts of money", "The house cost [[$5 million]]."),
    _entity("QUANTITY", "measurements", "It lies [[12 kilometres]] away."),
    _entity("ORDINAL", "ordinal numbers", "He finished [[third]]."),
    _entity("CARDINAL", "other numbers", "They had [[seven]] children."),
    Rule("noun_chunk", "word", "proper nouns inside a noun chunk that no entity covers", "He drove a [[Land Rover]]."),
    Rule("definition", "word", "nouns and adjectives after the first \"is a\" of the text: what the subject is",
         "Selje is a [[steep]] [[hill]]. It can be seen from afar.", "Selje"),
    _word("kind", "kinds of things, by list", "They bought a [[castle]] there."),
    _word("occupation", "occupations, by list", "She worked as a [[nurse]]."),
    _word("field", "fields of study, by list", "He taught [[chemistry]] there."),
    _word("sport", "sports, by list", "She likes [[volleyball]]."),
    _word("instrument", "instruments, by list", "He plays the [[cello]]."),
    _word("genre", "genres, by list", "They like [[jazz]]."),
    _word("direction", "directions, by list", "The road goes [[south]]."),
    _word("amount", "medals and units, by list", "She won [[bronze]]."),
    _word("number", "number words and figures that no entity covers", "The pair won [[twice]]."),
    _word("ordinal", "ordinals that no entity covers, by list", "He stayed until the [[tenth]]."),
    _shape("name", "runs of capitalised words, joined by short connectives", "He met [[Ludwig van Beethoven]] there."),
    _shape("date", "months with day and year", "She died on [[7 November 1934]]."),
    _shape("title", "up to twelve words in double quotes, with a capital or digit in them", 'She sang "[[Hey Jude]]".'),
    _never("repeat", "a later mention; case, possessives, diacritics and articles do not matter",
           "She moved to [[Malmö]], and liked Malmo's parks."),
    _never("short form", "words of an earlier mention", "He met [[Edward Elgar]] there. Later Elgar left."),
    _never("subject", "the document's title at the start of the text, and its later mentions",
           "Marie Curie was there. Later Curie went to [[Paris]].", "Marie Curie"),
    _never("heading", "section headings", "She sang well.\nEarly life and education.\nShe sang in [[Oslo]]."),
    _never("vague", "dates and numbers made of vague words only", "He left in the same year, and only one stayed."),
    _never("edges", "articles, prepositions and possessive endings at the edge of a span",
           "He studied at the [[University of Vermont]]."),
)  # fmt: skip
"""Every rule, in the order of docs/labels.md."""

FACTUAL_ENTITIES = frozenset(rule.name for rule in RULES if rule.kind == "entity")
"""Entity types (OntoNotes) whose first mentions are factual."""


def markdown() -> str:
    """The table as it stands in docs/labels.md."""
    lines = ["| rule | full | model-free | fires on | example |", "|---|---|---|---|---|"]
    for rule in RULES:
        example = re.sub(r"\[\[(.*?)\]\]", r"**\1**", rule.example).replace("\n", " / ")
        subject = f" (title: {rule.title})" if rule.title else ""
        mark = ["yes" if has else "" for has in (rule.full, rule.free)]
        name = f"*{rule.name}*" if rule.kind == "never" else f"`{rule.name}`"
        lines.append(f"| {name} | {mark[0]} | {mark[1]} | {rule.fires} | {example}{subject} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")

"""Writing a biography: which sentences, in which order, and the positions of the facts in them."""

from __future__ import annotations

import functools
import itertools

from lacy_jax.corpus import grammar, pools, templates
from lacy_jax.corpus.document import Fact
from lacy_jax.corpus.people import Draw, Person

_FILLERS_PER_TEXT = (2, 3)
_LEFT_OUT_PER_TEXT = (0, 0, 1)  # attributes that a text does not mention


@functools.cache
def template_groups() -> tuple[tuple[grammar.Template, ...], ...]:
    """(leads, sentences with facts, fillers), compiled."""
    compiled = iter(grammar.all_templates())
    groups = (templates.LEADS, templates.FACT_SENTENCES, templates.FILLERS)
    return tuple(tuple(itertools.islice(compiled, len(group))) for group in groups)


def choose_templates(draw: Draw) -> list[grammar.Template]:
    """The sentences of one text: a lead, then facts not yet stated and fillers in random order."""
    leads, with_facts, fillers = template_groups()
    lead = leads[draw.below(len(leads))]
    stated = set(lead.slots)
    body: list[grammar.Template] = []
    wanted = [a for a in draw.shuffled(templates.ATTRIBUTES) if a not in stated]
    left_out = set(wanted[: _LEFT_OUT_PER_TEXT[draw.below(len(_LEFT_OUT_PER_TEXT))]])
    for attribute in wanted:
        if attribute in stated or attribute in left_out:
            continue
        options = [
            t for t in with_facts if attribute in t.slots and not stated.union(left_out).intersection(t.slots)
        ]
        chosen = options[draw.below(len(options))]
        stated.update(chosen.slots)
        body.append(chosen)
    count = _FILLERS_PER_TEXT[draw.below(len(_FILLERS_PER_TEXT))]
    body += draw.shuffled(fillers)[:count]
    return [lead, *draw.shuffled(body)]


class Writer:
    """Fills in templates for one person and records where the facts are."""

    def __init__(self, person: Person, draw: Draw):
        self.person, self.draw = person, draw
        self.text = ""
        self.facts: list[Fact] = []

    def add(self, template: grammar.Template) -> None:
        """Append one sentence, with the surname in place of a leading pronoun one time in four."""
        if self.text:
            self.text += " "
        start = len(self.text)
        forms = grammar.PRONOUNS[self.person.pronoun] | {"N": self.person.name}
        if self.draw.below(4) == 0:
            forms |= surname_forms(self.person)
        for element in template.elements:
            self.text += element.lead
            if element.kind == "slot":
                value = self.person.attributes[element.name]
                end = len(self.text) + len(value)
                self.facts.append(Fact(len(self.text), end, self.person.name, element.name, value))
                word = value
            elif element.kind == "free":
                word = self.draw.choice(pools.FREE_WORDS[element.name])
            else:
                word = element.name if element.kind == "literal" else forms[element.name]
            self.text += word[0].upper() + word[1:] if len(self.text) == start else word


def surname_forms(person: Person) -> dict[str, str]:
    """The text of each reference that may name the person, when it does."""
    return {"S": person.surname, "P": f"{person.surname}'s", "was": "was"}

"""The embedded world: synthetic biographies whose every fact is known exactly.

A test bed for delegation. A small model can learn the sentences (templates.py) perfectly but cannot hold
the attributes of many people; and much of the wording is unpredictable without being factual. That is the situation of
arXiv:2602.12005 §3: high loss alone does not tell where to emit CALL. The number of people sets the number of facts
relative to the model's capacity.

Person i and text (i, variant) are functions of (seed, i, variant) alone and cost O(1), so a world of any size
takes no memory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence

from lacy_jax.corpus import grammar, pools, templates
from lacy_jax.corpus.biography import Writer, choose_templates, surname_forms, template_groups
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.grammar import Statement
from lacy_jax.corpus.people import NAMES, Draw, Person, decode_name, draw_person, encode_name
from lacy_jax.errors import ConfigError


class _People(Sequence):
    """The people of a world, as a sequence that generates each person when indexed."""

    def __init__(self, world: World):
        self._world = world

    def __len__(self) -> int:
        return self._world.size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"person {index}: the world has {len(self)} people")
        return self._world.person(index % len(self))


class World:
    """`people` people drawn from `seed`, the texts about them, and the table of what is true.

    Attributes:
      size, seed: the arguments.
      people: a sequence of `Person`, generated when indexed.

    Raises:
      ConfigError: more people than there are names, or fewer than one.
    """

    def __init__(self, people: int, seed: int = 0):
        if not 1 <= people <= NAMES:
            raise ConfigError(f"config.corpus.people = {people}: a world has 1 to {NAMES} people")
        self.size, self.seed = people, seed
        self.people: Sequence[Person] = _People(self)
        draw = Draw("names", seed)
        # i -> step * i + offset (mod NAMES), step coprime to NAMES, visits every name once and can be
        # inverted: names are unique and `lookup` needs no table.
        self._step = 1 + draw.below(NAMES - 1)
        while math.gcd(self._step, NAMES) != 1:
            self._step += 1
        self._offset = draw.below(NAMES)
        self._inverse = pow(self._step, -1, NAMES)
        self.person = functools.lru_cache(maxsize=4096)(self._person)

    def __reduce__(self):
        return World, (self.size, self.seed)

    @property
    def fingerprint(self) -> str:
        """Hex hash of everything the texts depend on: size, seed, templates, word lists, generator."""
        data = {
            name: value
            for module in (pools, templates)
            for name, value in vars(module).items()
            if name.isupper()
        }
        sample = self.text(0, 0).text
        content = json.dumps([self.size, self.seed, data, sample], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    # -- people ----------------------------------------------------------------------------------------------

    def name(self, index: int) -> str:
        """The full name of person `index`."""
        return decode_name((self._step * index + self._offset) % NAMES)

    def _person(self, index: int) -> Person:
        return draw_person(index, self.name(index), Draw("person", self.seed, index))

    def lookup(self, name: str) -> Person | None:
        """The person of that full name, or None. O(1), no table."""
        code = encode_name(name)
        if code is None:
            return None
        index = (code - self._offset) * self._inverse % NAMES
        return self.person(index) if index < self.size else None

    def table(self) -> Iterator[tuple[str, str, str]]:
        """Every fact of the world as (subject, attribute, value)."""
        for person in self.people:
            for attribute, value in person.attributes.items():
                yield person.name, attribute, value

    # -- texts -----------------------------------------------------------------------------------------------

    def text(self, person_index: int, variant: int = 0) -> Document:
        """A biography of a person, 80 to 140 words, with its facts; each variant has its own wording.

        Each attribute is stated at most once, so every stated value is a first mention.
        """
        person = self.people[person_index]
        draw = Draw("text", self.seed, person.index, variant)
        writer = Writer(person, draw)
        for template in choose_templates(draw):
            writer.add(template)
        return Document(
            id=f"world-{self.seed}-{person.index}-{variant}",
            text=writer.text,
            title=person.name,
            facts=tuple(writer.facts),
        )

    def prompt(self, person_index: int, variant: int = 0) -> str:
        """A prompt that starts a biography and states nothing: the name and the next word.

        "Mara Eve Ellison was" or "Mara Eve Ellison,". It is the beginning of `text(person_index, variant)`.
        """
        person = self.people[person_index]
        draw = Draw("text", self.seed, person.index, variant)
        opening = choose_templates(draw)[0].elements[1].name
        return person.name + ("," if opening.startswith(",") else " " + opening.split()[0])

    # -- the partner's side ----------------------------------------------------------------------------------

    def subject(self, text: str) -> Person | None:
        """The person a text is about: the one with the full name at its start."""
        words = text[:200].split()[:3]
        if len(words) == 3:
            words[2] = words[2].rstrip(",.;:").removesuffix("'s").rstrip(",")
        return self.lookup(" ".join(words))

    def complete(self, text: str) -> str | None:
        """The text that states the fact that `text` asks for at its end.

        Args:
          text: a biography so far, beginning with the full name.

        Returns:
          What to append: the value, or the rest of it if `text` ends inside a value that is right so far, preceded by a
          space if that is not yet written. None if `text` is not at a fact, ends in a value that is already wrong or
          already complete, or is not about a person of this world.
        """
        person = self.subject(text)
        if person is None:
            return None
        sentence = text[grammar.sentence_start(text) :]
        for attribute, part in grammar.open_slots(sentence):
            wanted = " " + person.attributes[attribute]
            if wanted.startswith(part) and len(part) < len(wanted):
                return wanted[len(part) :]
        return None

    def next_text(self, text: str) -> str:
        """What a partner says if no fact is asked for: the rest of the current word or the next word.

        Follows a template that fits the unfinished sentence; if none does, ends the sentence and starts another. Always
        at least one word or punctuation mark.
        """
        person = self.subject(text)
        draw = Draw("next", self.seed, len(text), text[-40:])
        forms = grammar.PRONOUNS[person.pronoun if person is not None else "they"]
        start = grammar.sentence_start(text)
        sentence = text[start:]
        if not sentence or sentence.endswith("."):
            return ("" if not text or text[-1].isspace() else " ") + forms["S"]

        def options(element: grammar.Element) -> Sequence[str]:
            if element.kind == "free":
                return draw.shuffled(pools.FREE_WORDS[element.name])
            by_name = {} if person is None else surname_forms(person) | {"N": person.name}
            return [form[element.name] for form in (forms, by_name) if element.name in form]

        leads, with_facts, fillers = template_groups()
        candidates = (*with_facts, *fillers) if start else leads
        values = {} if person is None else person.attributes
        for continuation in grammar.continuations(sentence, draw.shuffled(candidates), values, options):
            words = continuation.split(" ")
            return " ".join(words[: 2 if words[0] == "" else 1])
        return f". {forms['S']}"

    def statements(self, text: str) -> list[Statement]:
        """Every attribute value that a biography states, right or wrong, judged against the table.

        Finished sentences are matched to the templates; a value is whatever stands in a slot. A repeated attribute is
        reported each time. Nothing is reported for a text that is not about a person of this world.
        """
        person = self.subject(text)
        if person is None:
            return []
        found = []
        for start, end in grammar.sentences(text):
            for left, right, attribute in grammar.stated_slots(text[start:end]):
                stated = text[start + left : start + right]
                true = stated == person.attributes[attribute]
                found.append(Statement(start + left, start + right, person.name, attribute, stated, true))
        return found

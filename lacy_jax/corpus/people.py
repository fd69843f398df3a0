"""People of the embedded world: names by number, attributes by seed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from lacy_jax.corpus import grammar, pools

SURNAMES = tuple(stem + ending for stem in pools.SURNAME_STEMS for ending in pools.SURNAME_ENDINGS)
_SURNAME_CODE = {name: code for code, name in enumerate(SURNAMES)}
_FIRST_CODE = {name: code for code, name in enumerate(pools.FIRST_NAMES)}
_MIDDLE_CODE = {name: code for code, name in enumerate(pools.MIDDLE_NAMES)}
NAMES = len(pools.FIRST_NAMES) * len(pools.MIDDLE_NAMES) * len(SURNAMES)
"""How many people a world can have: all three-part names."""


@dataclasses.dataclass(frozen=True)
class Person:
    """One person.

    Attributes:
      index: position in the world.
      name: "First Middle Last", unique in the world.
      pronoun: he, she or they.
      attributes: the value of each of templates.ATTRIBUTES.
    """

    index: int
    name: str
    pronoun: str
    attributes: dict[str, str]

    @property
    def surname(self) -> str:
        return self.name.rsplit(" ", 1)[-1]


class Draw:
    """Draws that are the same on every Python version (only `random.Random.random` is guaranteed to be)."""

    def __init__(self, *key: object):
        self._random = random.Random("/".join(map(str, key)))

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def choice(self, options: Sequence[str]) -> str:
        return options[self.below(len(options))]

    def shuffled(self, items: Sequence) -> list:
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result


def encode_name(name: str) -> int | None:
    """The number in [0, NAMES) of a full name, or None if a part of it is not in our lists."""
    parts = name.split()
    if len(parts) != 3 or parts[0] not in _FIRST_CODE or parts[1] not in _MIDDLE_CODE:
        return None
    surname = _SURNAME_CODE.get(parts[2])
    if surname is None:
        return None
    code = surname * len(pools.MIDDLE_NAMES) + _MIDDLE_CODE[parts[1]]
    return code * len(pools.FIRST_NAMES) + _FIRST_CODE[parts[0]]


def decode_name(code: int) -> str:
    """Inverse of `encode_name`."""
    code, first = divmod(code, len(pools.FIRST_NAMES))
    surname, middle = divmod(code, len(pools.MIDDLE_NAMES))
    return f"{pools.FIRST_NAMES[first]} {pools.MIDDLE_NAMES[middle]} {SURNAMES[surname]}"


def draw_person(index: int, name: str, draw: Draw) -> Person:
    """A person with that name and randomly drawn attributes."""
    pronoun = draw.choice(tuple(grammar.PRONOUNS))
    return Person(index, name, pronoun, _draw_attributes(draw, name.rsplit(" ", 1)[-1]))


def _draw_attributes(draw: Draw, surname: str) -> dict[str, str]:
    """Values of one person, in the order of templates.ATTRIBUTES; no two places or relatives are the same."""
    birth_year = 1900 + draw.below(80)
    values = {
        "birth_date": f"{1 + draw.below(28)} {draw.choice(pools.MONTHS)} {birth_year}",
        "birthplace": _place(draw),
        "university": draw.choice(pools.UNIVERSITY_FORMS).format(draw.choice(pools.UNIVERSITY_BASES)),
        "field": draw.choice(pools.FIELDS),
        "employer": draw.choice(pools.EMPLOYER_FORMS).format(draw.choice(pools.EMPLOYER_BASES)),
        "occupation": draw.choice(pools.OCCUPATIONS),
        "work": f"The {draw.choice(pools.TITLE_ADJECTIVES)} {draw.choice(pools.TITLE_NOUNS)}",
        "work_year": str(birth_year + 20 + draw.below(40)),
        "spouse": _relative(draw, surname),
        "award": draw.choice(pools.AWARD_FORMS).format(draw.choice(pools.AWARD_BASES)),
    }
    values["residence"] = _place(draw)
    while values["residence"] == values["birthplace"]:
        values["residence"] = _place(draw)
    values["mentor"] = _relative(draw, surname)
    while values["mentor"] == values["spouse"]:
        values["mentor"] = _relative(draw, surname)
    return values


def _place(draw: Draw) -> str:
    return draw.choice(pools.PLACE_STEMS) + draw.choice(pools.PLACE_ENDINGS)


def _relative(draw: Draw, not_surname: str) -> str:
    """A first and last name; the surname differs from the subject's, so that it is never a copy."""
    while (surname := draw.choice(SURNAMES)) == not_surname:
        pass
    return f"{draw.choice(pools.FIRST_NAMES)} {surname}"

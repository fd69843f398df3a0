"""Inline templates of Wikipedia as text: what a reader sees where the template stands.

Templates are programs of their wiki, and a dump holds calls, not results. Those that stand inside sentences and whose
result follows from their arguments are few in kind: a wrapper around its text, a quantity, a date, a mark. They are
tables by name: `words`, `numbers`, `dates`. Everything else shows something beside the prose, or depends on what a dump
does not hold; it is left out and counted (`Markup.prose`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

Render = Callable[["Arguments"], str]
"""Makes of a template's arguments what a reader sees."""

_SEPARATORS = {
    **dict.fromkeys("de nl es it pt da id tr el ro hr sl sr bs mk vi gl ca eu is lb".split(), (".", ",")),
    **dict.fromkeys("fr ru uk be pl cs sk sv fi no nb nn hu bg et lv lt kk hy ka eo af".split(), (" ", ",")),
}
"""What stands between thousands and before decimals, where it is not as in English."""


class Arguments:
    """A template's arguments as text.

    Attributes:
      positional: those without a name, and those named by number, in order.
      named: the others, names in lower case.
      language: of the wiki, by which numbers are written.
    """

    def __init__(self, positional: Sequence[str], named: Mapping[str, str], language: str = "en"):
        self.positional, self.named, self.language = positional, named, language

    def number(self, text: str) -> str:
        """A number, written as in a program, as the language writes it; other text as it is."""
        match = re.fullmatch(r"([-−]?)(\d+)(?:\.(\d+))?", text.strip().replace(",", ""))
        if match is None or (len(match[2]) > 1 and match[2].startswith("0")):
            return text.strip()
        thousands, point = _SEPARATORS.get(self.language, (",", "."))
        whole = f"{int(match[2]):,}".replace(",", thousands)
        return f"{'−' if match[1] else ''}{whole}{point + match[3] if match[3] else ''}"

    def at(self, number: int) -> str:
        """Argument `number`, from 1; "" if there is none."""
        return self.positional[number - 1].strip() if len(self.positional) >= number else ""

    def get(self, *names: str) -> str:
        """The first of these named arguments that is not empty."""
        return next((self.named[name].strip() for name in names if self.named.get(name, "").strip()), "")

    def given(self) -> list[str]:
        """The positional arguments that are not empty."""
        return [text.strip() for text in self.positional if text.strip()]


def by_name(listed: Mapping[str, Render]) -> dict[str, Render]:
    """A table of single names from one whose keys are several, apart by spaces; "_" stands for a space in a name."""
    return {name.replace("_", " "): render for names, render in listed.items() for name in names.split()}

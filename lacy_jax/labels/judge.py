"""What an LLM judge is asked about a text, and how its answer is read (policy `judge`, arXiv:2602.12005 §5.1).

The judge reads a passage with numbered words and names those that a small model should not be trained to guess, most
certain first. The source does not give its prompt: this one is ours.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re

from lacy_jax.labels.spans import Span

PASSAGE = 150
"""Words judged by one request."""
_CONTEXT = 400
"""Characters before the passage that the judge sees, too."""
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_LIST = re.compile(r"\[[^\[\]]*\]")

PROMPT = """A small language model is trained on the text below. Some words state facts that cannot be inferred from
the words before them and that have no acceptable alternative (names, dates, numbers, places, titles, what something is).
The model should ask for help there instead of guessing. Words that merely have many acceptable alternatives, grammar,
and repetitions of what the text has already said do not count.

Text before the passage: {context}

Passage, each word with its number:
{passage}

Answer with a JSON list of at most {most} word numbers, most certain first, and nothing else. Example: [3, 17, 4]"""


@dataclasses.dataclass(frozen=True)
class Passage:
    """Consecutive words of a document, as character ranges, and what to ask about them."""

    words: tuple[Span, ...]
    prompt: str
    most: int


def passages_of(text: str, rate: float) -> list[Passage]:
    """The requests for one document."""
    words = [match.span() for match in _WORD.finditer(text)]
    found = []
    for at in range(0, len(words), PASSAGE):
        part = words[at : at + PASSAGE]
        most = math.ceil(rate * len(part))
        numbered = " ".join(f"{i}:{text[start:end]}" for i, (start, end) in enumerate(part, 1))
        context = text[max(part[0][0] - _CONTEXT, 0) : part[0][0]].strip() or "(none)"
        found.append(Passage(tuple(part), PROMPT.format(context=context, passage=numbered, most=most), most))
    return found


def read_answer(answer: str, words: int) -> list[int] | None:
    """Word numbers (from 1) in a judge's answer, in its order; None if it is malformed.

    Talk around the list is allowed. A number that is no word's, or anything but whole numbers, is not.
    """
    for match in reversed(_LIST.findall(answer)):
        try:
            numbers = json.loads(match)
        except ValueError:
            continue
        if all(type(number) is int and 1 <= number <= words for number in numbers):
            return list(dict.fromkeys(numbers))
    return None

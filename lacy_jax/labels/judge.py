"""What an LLM judge is asked about a text, and how its answer is read (policy `judge`, arXiv:2602.12005 §5.1).

The judge reads a passage with numbered words and lists those that a small model should not be trained to guess, most
certain first. The paper does not give its prompt; this one is ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Sequence

from lacy_jax.formatting import exact
from lacy_jax.labels.spans import Span

PASSAGE = 150
"""Words judged per request."""
_CONTEXT = 400
"""Characters before the passage that are shown to the judge as context."""
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_LIST = re.compile(r"\[[^\[\]]*\]")

PROMPT = """A small language model is trained on the text below. Some words state facts that cannot be inferred from
the words before them and that have no acceptable alternative (names, dates, numbers, places, titles, what something is).
The model should ask for help there instead of guessing. Words that merely have many acceptable alternatives, grammar,
and repetitions of what the text has already said do not count.

Text before the passage: {context}

Excerpt, each word with its number:
{passage}

Answer with a JSON list of at most {most} word numbers, most certain first, and nothing else. Example: [3, 17, 4]"""
EXAMPLE = (3, 17, 4)
"""The prompt's example: a judge that returns it has not judged."""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Consecutive words of a document, as character ranges, with the prompt about them and the most that may be flagged."""

    words: tuple[Span, ...]
    prompt: str
    most: int


def excerpts_of(text: str, rate: float) -> list[Excerpt]:
    """The requests for one document."""
    words = [match.span() for match in _WORD.finditer(text)]
    found = []
    for at in range(0, len(words), PASSAGE):
        part = words[at : at + PASSAGE]
        most = math.ceil(exact(rate) * len(part))
        numbered = " ".join(f"{i}:{text[start:end]}" for i, (start, end) in enumerate(part, 1))
        context = text[max(part[0][0] - _CONTEXT, 0) : part[0][0]].strip() or "(none)"
        found.append(Excerpt(tuple(part), PROMPT.format(context=context, passage=numbered, most=most), most))
    return found


def read_numbers(answer: str, most: int, example: Sequence[int] = EXAMPLE) -> list[int]:
    """The numbers (1 to `most`) in the last list of a judge's answer, in order; there may be other text around the list.

    Raises:
      ValueError: there is no list, it holds anything but whole numbers in range, or it is the prompt's `example`.
    """
    for found in reversed(_LIST.findall(answer)):
        with contextlib.suppress(ValueError, RecursionError):
            numbers = json.loads(found)
            break
    else:
        raise ValueError("no list of numbers")
    if numbers == list(example):
        raise ValueError("the prompt's own example")
    if not all(type(number) is int and 1 <= number <= most for number in numbers):
        raise ValueError("a list that holds other things than the numbers asked about")
    return list(dict.fromkeys(numbers))


def longest_answer(numbers: int, of: int) -> str:
    """The list of the `numbers` largest numbers up to `of`, for estimates."""
    return json.dumps(list(range(of, max(of - numbers, 0), -1)))

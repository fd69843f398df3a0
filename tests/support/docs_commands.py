"""The commands in the code of a documentation page."""

from __future__ import annotations

import re
import shlex


def blocks(text: str) -> list[str]:
    """The fenced and the indented code of a page."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return fenced + re.findall(r"(?:(?<=\n\n)|\A)(?: {4}.*\n?|\n(?= {4}))+", rest)


def commands(text: str) -> list[list[str]]:
    """The command lines in the code of a page, without prompt and comment, split as a shell splits them."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        plain = line.strip().removeprefix("$ ")
        if re.match(r"([A-Z_]+=\S+ )*(lacy|python|make|pip|tpu_scripts)\b", plain):
            words = shlex.split(re.sub(r"\s#.*", "", plain))  # shlex would cut chat+http://...#MODEL, too.
            found.append(words[next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :])
    return found

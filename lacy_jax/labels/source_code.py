"""A labeller for Python source, and an example of a custom labeller.

In a program, a fact is something that only documentation or another file can tell: which module to import, what a
library's function is called, which constant is right. Names that the text itself defines are copies of earlier tokens.

The rules are the table below; another language needs only another table.
"""

from __future__ import annotations

import re

from lacy_jax.corpus.document import Document
from lacy_jax.labels.spans import Labels, Span

RULES: tuple[tuple[str, str], ...] = (
    ("comment", r"\#[^\n]*"),
    ("docstring", r"'{3}[\s\S]*?'{3}|\"{3}[\s\S]*?\"{3}"),
    ("string", r"(?:\b[rbfuRBFU]{1,2})?(?:'[^'\n]*'|\"[^\"\n]*\")"),
    ("module", r"(?:(?<=\bimport )|(?<=\bfrom ))[\w.]+"),
    ("attribute", r"(?<=\w\.)[A-Za-z_]\w*"),
    ("keyword_argument", r"\b[a-z_]\w*(?==[^=\s])"),
    ("number", r"\b(?:0[xob][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:e-?\d+)?)\b"),
    ("word", r"[A-Za-z_]\w*"),
)
"""(rule, regular expression), tried in this order at each position. `comment`, `docstring` and `word` are not factual."""

_PATTERN = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in RULES))
_DEFINED = re.compile(
    r"\b(?:def|class|as|for)\s+(\w+)|\bself\.(\w+)\s*=[^=]|^\s*(\w+)\s*(?::[^=\n]+)?=[^=]", re.MULTILINE
)
_PARAMETERS = re.compile(r"\bdef\s+\w+\(([^)]*)\)")
_TRIVIAL = frozenset(["0", "1", "2", "self", "cls"])


class SourceCodeLabeller:
    """Marks first uses of modules, of attributes that the file does not define, of keyword arguments, numbers and strings."""

    name = "python-source"
    version = "1"

    def label(self, document: Document) -> Labels:
        """Labels of one source file; comments and docstrings are content without facts."""
        text = document.text
        known = {name for match in _DEFINED.finditer(text) for name in match.groups() if name}
        for parameters in _PARAMETERS.findall(text):
            known.update(re.findall(r"(?:^|,)\s*\**(\w+)", parameters))
        factual: list[Span] = []
        reasons: list[str] = []
        content: list[Span] = []
        for match in _PATTERN.finditer(text):
            kind, surface = str(match.lastgroup), match[0]
            if kind in ("comment", "docstring"):
                content.append(match.span())
            if kind in ("comment", "docstring", "word") or surface in known or surface in _TRIVIAL:
                continue
            known.add(surface)
            factual.append(match.span())
            reasons.append(kind)
        return Labels(tuple(factual), tuple(content), tuple(reasons))

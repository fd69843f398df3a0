"""Documents with their factual tokens marked, for `lacy inspect`: in the terminal, and as a self-contained page.

Marks do not rely on colour. Factual text is bold and underlined on a terminal, [[bracketed|RULE]] in plain text, and
underlined on the page. On the page, text that is neither factual nor grammatical is dotted, and repeats of earlier
statements are struck out. Two labellers are shown side by side, with boxes around the tokens on which they disagree;
with a model, a bar under each token shows its probability of CALL.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import ml_collections
import numpy as np

from lacy_jax.config import changed
from lacy_jax.corpus import open_corpus
from lacy_jax.corpus.document import Document
from lacy_jax.errors import ConfigError
from lacy_jax.labels.alignment import align
from lacy_jax.labels.registry import get_labeller
from lacy_jax.labels.spans import Labeller, Span
from lacy_jax.labels.windows import label_pieces
from lacy_jax.tokenizer import Tokenizer

_WORDS = re.compile(r"\s*(?:\w+|[^\w\s])")
# Every control character except tab and newline: a document must not send escape codes to the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BOLD_UNDERLINE, _DIM, _RESET = "\x1b[1;4m", "\x1b[2m", "\x1b[0m"


@dataclasses.dataclass(frozen=True, slots=True)
class ShownPiece:
    """One token as shown.

    Attributes:
      text: its characters; "" if an earlier piece already shows them.
      factual, nongrammatical: its labels.
      rule: the rule that made the span which the piece overlaps; "" outside spans. A piece that is only a space is
        not factual, but has the rule of the span around it.
      repeated: a rule fired here on something stated earlier.
      differs: the other labeller, in a comparison, gives another factual label.
      nll, call, call_rank: with a model, its loss on the token (nats), its probability of CALL there, and the share
        of the tokens shown that have a lower one; otherwise None.
    """

    text: str
    factual: bool
    nongrammatical: bool
    rule: str
    repeated: bool = False
    differs: bool = False
    nll: float | None = None
    call: float | None = None
    call_rank: float | None = None

    @property
    def title(self) -> str:
        """The tooltip of the token on the page."""
        scores = (
            ""
            if self.nll is None
            else f"nll {self.nll:.2f}, p(CALL) {self.call:.2f}, lower at {self.call_rank:.0%} of tokens"
        )
        return "; ".join(filter(None, (self.rule, scores)))


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledDocument:
    """A labelled document; the texts of its pieces, joined, are the document's text.

    Attributes:
      pieces: all pieces in text order.
      facts: (text, rule) of each factual span.
      labeller: name and version of the labeller.
      unit: "tokens", or "words" if there was no tokenizer yet.
    """

    id: str
    title: str
    pieces: tuple[ShownPiece, ...]
    facts: tuple[tuple[str, str], ...]
    labeller: str
    unit: str

    @property
    def factual_rate(self) -> float:
        """Factual pieces / pieces."""
        return sum(piece.factual for piece in self.pieces) / max(len(self.pieces), 1)

    def groups(self) -> Iterator[tuple[tuple[ShownPiece, ...], str]]:
        """(pieces, rule) of neighbouring pieces with the same rule; "" is plain text."""
        for rule, group in itertools.groupby(self.pieces, lambda piece: piece.rule):
            yield tuple(group), rule

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: id, title, labeller, unit, pieces, factual, factual_rate, nongrammatical_rate, facts."""
        count = len(self.pieces)
        return {
            "id": self.id,
            "title": self.title,
            "labeller": self.labeller,
            "unit": self.unit,
            "pieces": count,
            "factual": sum(piece.factual for piece in self.pieces),
            "factual_rate": self.factual_rate,
            "nongrammatical_rate": sum(piece.nongrammatical for piece in self.pieces) / max(count, 1),
            "facts": [{"text": text, "rule": rule} for text, rule in self.facts],
        }


def inspect_documents(
    config: ml_collections.ConfigDict, count: int, tokenizer: Tokenizer | None = None, against: str = ""
) -> list[LabelledDocument]:
    """Label the first `count` documents of the configured corpus, as `lacy prepare` would.

    Args:
      config: the run's config; its `corpus` and `labels` groups are read.
      tokenizer: None shows words instead of tokens.
      against: a second labeller, written as in `labels.labeller`: each document then comes twice, once from each
        labeller, with the differences marked.

    Raises:
      ConfigError: `count` is not positive, or the labeller is unknown.
      DataError: the corpus or the labeller's model is missing, or a record is bad.
    """
    if count < 1:
        raise ConfigError(f"--limit={count}: must be at least 1")
    labeller = get_labeller(config, config.corpus.kind)
    documents = list(itertools.islice(open_corpus(config.corpus), count))
    shown = [label_document(document, labeller, tokenizer) for document in documents]
    if not against:
        return shown
    second = get_labeller(changed(config, {"labels.labeller": against}), config.corpus.kind)
    others = [label_document(document, second, tokenizer) for document in documents]
    return [document for pair in zip(shown, others) for document in compared(*pair)]


def label_document(
    document: Document, labeller: Labeller, tokenizer: Tokenizer | None = None
) -> LabelledDocument:
    """One document with labels on its pieces (on its words if `tokenizer` is None)."""
    text = document.text
    if tokenizer is None:
        starts, ends = np.array([match.span() for match in _WORDS.finditer(text)], np.int32).reshape(-1, 2).T
    else:
        _, starts, ends = tokenizer.encode_with_offsets(text)
    labels = label_pieces(labeller, document, starts)
    factual = align(labels.factual, starts, ends, text)
    nongrammatical = align(labels.nongrammatical, starts, ends, text) & ~factual
    repeated = align(labels.repeats, starts, ends, text) & ~factual
    reasons = labels.reasons or ("factual",) * len(labels.factual)
    pieces, shown = [], 0
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
        rule = _rule_at(labels.factual, reasons, start, end)
        flags = bool(factual[i]), bool(nongrammatical[i])
        pieces.append(ShownPiece(text[shown:end], *flags, rule, bool(repeated[i])))
        shown = max(shown, end)
    if shown < len(text):  # Text that a normaliser dropped, such as a last space.
        pieces.append(ShownPiece(text[shown:], False, False, ""))
    return LabelledDocument(
        document.id,
        document.title,
        tuple(pieces),
        tuple((text[start:end], rule) for (start, end), rule in zip(labels.factual, reasons)),
        f"{labeller.name} (version {labeller.version})",
        "words" if tokenizer is None else "tokens",
    )


def compared(one: LabelledDocument, other: LabelledDocument) -> tuple[LabelledDocument, LabelledDocument]:
    """One document from two labellers, with the pieces marked on which they disagree."""
    differs = [a.factual != b.factual for a, b in zip(one.pieces, other.pieces, strict=True)]
    both = [
        tuple(dataclasses.replace(piece, differs=d) for piece, d in zip(document.pieces, differs))
        for document in (one, other)
    ]
    return dataclasses.replace(one, pieces=both[0]), dataclasses.replace(other, pieces=both[1])


def pairs(documents: Sequence[LabelledDocument]) -> list[tuple[LabelledDocument, ...]]:
    """Documents grouped for showing side by side: one group per document, with an entry per labeller."""
    return [tuple(group) for _, group in itertools.groupby(documents, lambda document: document.id)]


def _rule_at(spans: Sequence[Span], reasons: Sequence[str], start: int, end: int) -> str:
    """The rule of the first span that overlaps [start, end)."""
    low, high = 0, len(spans)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if spans[middle][1] <= start else (low, middle)
    return reasons[low] if low < len(spans) and spans[low][0] < end else ""


def render_terminal(documents: Sequence[LabelledDocument], color: bool = True) -> str:
    """Text for a terminal: factual pieces bold and underlined, followed by the rule, dimmed; brackets if not `color`."""
    parts = []
    for document in documents:
        head = f"{document.title or document.id} ({document.id})" if document.title else document.id
        rate = f"{document.factual_rate:.1%} of {len(document.pieces)} {document.unit} factual"
        body = "".join(_terminal_group(*group, color) for group in document.groups())
        parts.append(f"== {_visible(head)}: {rate}\n{body}\n")
    return "\n".join([*parts, *summaries(documents)])


def _terminal_group(pieces: tuple[ShownPiece, ...], rule: str, color: bool) -> str:
    text = _visible("".join(piece.text for piece in pieces))
    if not any(piece.factual for piece in pieces) or not text.strip():
        return text
    core = text.strip()
    before, after = text[: text.index(core)], text[text.index(core) + len(core) :]
    if color:
        return f"{before}{_BOLD_UNDERLINE}{core}{_RESET}{_DIM}|{rule}{_RESET}{after}"
    return f"{before}[[{core}|{rule}]]{after}"


def _visible(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def summary(documents: Sequence[LabelledDocument]) -> str:
    """Factual rate over all documents, the labeller, and how often each rule fired."""
    if not documents:
        return "no documents"
    total = sum(len(document.pieces) for document in documents)
    factual = sum(piece.factual for document in documents for piece in document.pieces)
    fired = rule_counts(documents)
    rules = ", ".join(f"{rule} {count}" for rule, count in fired) or "none"
    first = documents[0]
    return (
        f"factual rate {factual / max(total, 1):.1%} of {total} {first.unit} in {len(documents)} documents; "
        f"labeller {first.labeller}\nrules that fired: {rules}"
    )


def summaries(documents: Sequence[LabelledDocument]) -> list[str]:
    """`summary` for each labeller and, if there are two, the share of tokens on which they differ."""
    labellers = list(dict.fromkeys(document.labeller for document in documents))
    found = [summary([d for d in documents if d.labeller == labeller]) for labeller in labellers] or [
        summary([])
    ]
    if len(labellers) == 2:
        first = [d for d in documents if d.labeller == labellers[0]]
        differ = sum(piece.differs for document in first for piece in document.pieces)
        total = sum(len(document.pieces) for document in first)
        found.append(f"they differ on {differ} of {total} {first[0].unit} ({differ / max(total, 1):.1%})")
    return found


def rule_counts(documents: Sequence[LabelledDocument]) -> list[tuple[str, int]]:
    """(rule, number of factual spans it made), most frequent first."""
    return collections.Counter(rule for document in documents for _, rule in document.facts).most_common()


def render_html(documents: Sequence[LabelledDocument]) -> str:
    """One self-contained page without scripts or external files; a tooltip shows a token's rule."""
    template = pathlib.Path(__file__).with_name("inspect.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        pairs=pairs(documents), summaries=summaries(documents), rules=rule_counts(documents)
    )

"""The rule labeller on a full English pipeline: entities, noun chunks, keyword lists, first mentions.

The paper names these ingredients (arXiv:2602.12005 §3, appendix A.2.1) and their result, about 25 % of tokens;
its exact rules are not public, so these are ours. `table.py` lists them all, with an example each; in short:

1. A named entity of a type in the table is factual at its first mention.
2. A proper noun in a noun chunk that no entity covers is factual at its first mention.
3. A number, or a word of the keyword lists, that no entity covers is factual at its first mention.
4. So are the nouns and adjectives that say what the subject is, after "is a" in the first sentence.
5. Articles, prepositions and possessive endings at the edge of a span are not part of it.
6. The subject of the document (its title, if the text begins with it) is given, because generation starts from it:
   neither it nor its later mentions are factual.
7. Section headings, and dates and numbers made of vague words ("the same year"), state nothing.

A content word (noun, adjective, verb, adverb, number) that is not factual is "neither factual nor grammatical";
function words and punctuation are grammatical.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lacy_jax.corpus.document import Document
from lacy_jax.errors import DataError
from lacy_jax.labels.keywords import FUNCTION_WORDS, VAGUE, keyword_rule
from lacy_jax.labels.layout import headings
from lacy_jax.labels.mentions import first_mentions
from lacy_jax.labels.parse import Entity, Parse, Token, joined, parse_of_doc
from lacy_jax.labels.spans import Labels, Span
from lacy_jax.labels.table import FACTUAL_ENTITIES

RULES_VERSION = "5"

_PART = 50_000
"""Characters parsed at once: spaCy's parser needs about 1 GB per 100,000."""
_NO_PART = frozenset("meta.json accuracy.json LICENSE LICENSES_SOURCES lemmatizer".split())
"""Files in a pipeline's folder that do not affect its labels."""
_MEASURES = frozenset(["DATE", "TIME", "CARDINAL", "QUANTITY", "ORDINAL"])
_CONTENT_TAGS = ("NN", "JJ", "VB", "RB", "CD")
_FIRST_SENTENCE = re.compile(r".+?[a-z)\]\"]\.(?=\s|$)")
_IS_A = re.compile(r"\b(?:is|are|was|were)\s+(?:(?:a|an|the|one of the)\s+)")
_BEFORE = re.compile(r"(?:(?:the|a|an|of|in|on|at|by|from|to|about|around)\s+)+", re.IGNORECASE)
_AFTER = re.compile(r"(?:\s*['’]s?|\s*[,;:]|\s*(?<!\.[A-Z])\.)+$")  # "F.C." keeps its last full stop.


class SpacyLabeller:
    """Labels by the rules above, on an installed spaCy pipeline such as `en_core_web_sm`."""

    def __init__(self, model: str = "en_core_web_sm"):
        """
        Raises:
          DataError: spaCy or the pipeline is not installed, or the pipeline finds no entities; says what to install or use instead.
        """
        self._pipeline = load_pipeline(model)
        name, version = identity(self._pipeline)
        self.name, self.version = f"spacy:{name}", f"{RULES_VERSION}+{version}"

    def label(self, document: Document) -> Labels:
        """Parse and label one document."""
        return label_parse(parse_text(self._pipeline, document.text), document.title)


def parse_text(pipeline: Any, text: str) -> Parse:
    """Parse a text with a pipeline; a long text is parsed in parts, because the parser's memory grows with length.

    The memory zone makes spaCy forget the words of the text afterwards; otherwise it would keep every word it has seen.
    """
    parts = list(_parts(text))
    with pipeline.memory_zone():
        docs = pipeline.pipe(part for _, part in parts)
        return joined(text, [(start, parse_of_doc(doc)) for (start, _), doc in zip(parts, docs)])


def identity(pipeline: Any) -> tuple[str, str]:
    """Name of a pipeline, and its version with a hash of its files; they do not depend on where the folder is."""
    folder = pathlib.Path(pipeline.path)
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_file() and inside.parts[0] not in _NO_PART and file.suffix not in (".py", ".pyc", ".md"):
            digest.update(f"{inside.as_posix()}\n{file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    meta = pipeline.meta
    return f"{meta['lang']}_{meta['name']}", f"{meta['version']}+{digest.hexdigest()[:8]}"


def load_pipeline(model: str) -> Any:
    """An installed spaCy pipeline that finds entities.

    Raises:
      DataError: spaCy or the pipeline is not installed, or the pipeline finds no entities.
    """
    try:
        import spacy
    except ImportError:
        raise DataError(
            "labeller spacy: spaCy is not installed: pip install 'lacy_jax[labels]', or set "
            "--config.labels.labeller=rules"
        ) from None
    try:
        pipeline = spacy.load(model, exclude=["lemmatizer"])  # Nothing reads lemmas.
    except Exception as error:  # One for another version of spaCy, or a damaged one, raises almost anything.
        where, advice = "is not installed", f"python -m spacy download {model}"
        if not model.isidentifier():
            where = "is not a pipeline" if pathlib.Path(model).exists() else "does not exist"
            advice = "check config.labels.spacy_model"
        raise DataError(
            f"labeller spacy: {model!r} {where} or not for spaCy {spacy.__version__}: "
            f"{advice}, or set --config.labels.labeller=bundled or rules"
        ) from error
    if not {"ner", "entity_ruler"} & set(pipeline.pipe_names):
        raise DataError(
            f"labeller spacy: pipeline {model!r} finds no entities (it has: "
            f"{', '.join(pipeline.pipe_names) or 'nothing'}); use en_core_web_sm or set "
            "--config.labels.labeller=bundled or rules"
        )
    return pipeline


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """(start, part) of at most _PART characters each, cut at a line end if possible, else at a space."""
    start = 0
    while len(text) - start > _PART:
        window = text[start : start + _PART]
        cut = (window.rfind("\n") + 1) or (window.rfind(" ") + 1) or _PART
        yield start, window[:cut]
        start += cut
    yield start, text[start:]


def label_parse(parse: Parse, title: str = "") -> Labels:
    """Apply the rules to a parsed text.

    Args:
      parse: the text with tokens, entities and noun chunks.
      title: the document's subject; "" if unknown.
    """
    labels = first_mentions(parse.text, title, _candidates(parse))
    return dataclasses.replace(labels, nongrammatical=tuple(_nongrammatical(parse, labels.factual)))


def _candidates(parse: Parse) -> Iterator[tuple[int, int, str]]:
    """Spans that would state a fact if mentioned for the first time, in text order, disjoint."""
    titles = headings(parse.text)
    entities = [e for e in parse.entities if e.label in FACTUAL_ENTITIES and not _vague(parse.text, e)]
    found = [(*_trim(parse.text, e.start, e.end), e.label) for e in entities]
    free = list(_uncovered(parse.tokens, entities))
    found += _proper_nouns(parse, free)
    lead = _definition(parse)
    for token in free:
        word = parse.text[token.start : token.end]
        numeric = word[0].isdigit() or (
            token.tag == "CD" and word.lower() not in VAGUE
        )  # "2017–18" is tagged JJ.
        rule = keyword_rule(parse.text, token.start, token.end) or ("number" if numeric else "")
        if not rule and lead[0] <= token.start < lead[1] and token.tag.startswith(("NN", "JJ")):
            rule = "" if word.lower() in VAGUE or word.lower() in FUNCTION_WORDS else "definition"
        if rule:
            found.append((token.start, token.end, rule))
    last = at = 0
    for start, end, reason in sorted(found):
        while at < len(titles) and titles[at][1] <= start:
            at += 1
        heading = at < len(titles) and titles[at][0] <= start
        if start >= last and end > start and not heading:
            yield start, end, reason
            last = end


def _definition(parse: Parse) -> Span:
    """The noun chunk after "is a" in the first sentence, which says what the subject is; (0, 0) if there is none."""
    first = _FIRST_SENTENCE.match(parse.text)
    verb = _IS_A.search(parse.text, 0, first.end() if first else len(parse.text))
    chunks = (chunk for chunk in parse.chunks if verb and chunk[1] > verb.end())
    start, end = next(chunks, (0, 0))
    return (start, end) if verb and start <= verb.end() else (0, 0)


def _vague(text: str, entity: Entity) -> bool:
    """Whether a date or number states nothing: "the same year", "only one"."""
    words = text[entity.start : entity.end].lower().split()
    return entity.label in _MEASURES and all(word in VAGUE for word in words)


def _trim(text: str, start: int, end: int) -> Span:
    """The span without leading articles and prepositions, and without trailing possessive endings and punctuation."""
    before = _BEFORE.match(text, start, end)
    start = before.end() if before else start
    after = _AFTER.search(text, start, end)
    return start, after.start() if after else end


def _uncovered(tokens: tuple[Token, ...], entities: list[Entity]) -> Iterator[Token]:
    """Tokens that overlap no entity; both lists are in text order."""
    i = 0
    for token in tokens:
        while i < len(entities) and entities[i].end <= token.start:
            i += 1
        if i == len(entities) or entities[i].start >= token.end:
            yield token


def _proper_nouns(parse: Parse, free: list[Token]) -> Iterator[tuple[int, int, str]]:
    """Runs of uncovered proper nouns inside a noun chunk."""
    chunks, i = parse.chunks, 0
    run: tuple[int, int] | None = None
    run_chunk = -1
    for token in free:
        while i < len(chunks) and chunks[i][1] <= token.start:
            i += 1
        named = token.tag in ("NNP", "NNPS") and _name_like(parse.text[token.start : token.end])
        inside = named and i < len(chunks) and chunks[i][0] <= token.start
        joins = run is not None and run_chunk == i and parse.text[run[1] : token.start].strip() == ""
        if inside and joins and run is not None:
            run = (run[0], token.end)
            continue
        if run is not None:
            yield (*run, "noun_chunk")
        run, run_chunk = ((token.start, token.end), i) if inside else (None, -1)
    if run is not None:
        yield (*run, "noun_chunk")


def _name_like(word: str) -> bool:
    """Whether a word tagged as a proper noun can be one: taggers often tag an initial "The" or "One" as a name."""
    return not word.islower() and (word.lower() not in FUNCTION_WORDS or (len(word) > 1 and word.isupper()))


def _nongrammatical(parse: Parse, factual: Sequence[Span]) -> Iterator[Span]:
    """Content words that overlap no factual span."""
    i = 0
    for token in parse.tokens:
        while i < len(factual) and factual[i][1] <= token.start:
            i += 1
        covered = i < len(factual) and factual[i][0] < token.end
        word = parse.text[token.start : token.end].lower()
        if not covered and token.tag.startswith(_CONTENT_TAGS) and word not in FUNCTION_WORDS:
            yield token.start, token.end

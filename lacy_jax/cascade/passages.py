"""An index of passages: documents cut into passages, found by BM25 (the library bm25s)."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from lacy_jax.corpus import Document
from lacy_jax.corpus.compression import find_files
from lacy_jax.corpus.readers import BadRecord, read_jsonl
from lacy_jax.errors import DataError, LacyError
from lacy_jax.json_lines import parse_line, split_lines
from lacy_jax.labels.layout import ends_with_abbreviation

PASSAGE_WORDS = 100
"""Most words of a passage, unless one sentence is longer; a passage ends where a sentence ends."""
_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+(?![\s\"'”’)\]]|$)[^.!?\n]*)*(?:[.!?]+[\"'”’)\]]*|\n|$)\s*")
_WORD = re.compile(r"\w+")
_FILES = ("passages.jsonl", "bm25")


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document: its title and the text, exactly as in the document."""

    title: str
    text: str


def bm25s_library() -> Any:
    """bm25s, imported where it is used: it computes something with JAX then, which no process may do before it has joined
    its cluster, takes a second (scipy), and logs every index it builds to stderr.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def words(text: str) -> list[str]:
    """Lower-case words, as indexed and as looked up."""
    return _WORD.findall(text.lower())


def split_passages(text: str, most_words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Consecutive pieces of at most `most_words` words that end with a sentence; a longer sentence stands alone."""
    begun, ended, count = 0, 0, 0
    for start, end in sentences(text):
        size = len(text[start:end].split())
        if count and count + size > most_words:
            yield text[begun:ended].strip()
            begun, count = start, 0
        ended, count = end, count + size
    if count:
        yield text[begun:ended].strip()


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of the sentences of a text in order, white space included; "U.S." and "Dr." do not end one."""
    begun = 0
    for match in _SENTENCE.finditer(text):
        end = match.end()
        if (
            end < len(text)
            and "\n" not in text[match.start() : end]
            and ends_with_abbreviation(text[begun:end].rstrip()[-12:])
        ):
            continue
        yield begun, end
        begun = end


class PassageIndex:
    """Passages with their BM25 index; the title counts as part of each passage's text.

    Make one with `build` or `load`.
    """

    def __init__(self, passages: list[Passage], retriever: Any):
        self.passages, self._retriever = passages, retriever
        self._vocabulary = retriever.vocab_dict

    @classmethod
    def build(cls, documents: Iterable[Document], most_words: int = PASSAGE_WORDS) -> PassageIndex:
        """Index documents.

        Raises:
          DataError: there are none.
        """
        passages = [
            Passage(document.title, part)
            for document in documents
            for part in split_passages(document.text, most_words)
        ]
        if not passages:
            raise DataError("no documents to index: the corpus is empty")
        retriever = bm25s_library().BM25()
        retriever.index([words(f"{p.title} {p.text}") for p in passages], show_progress=False)
        return cls(passages, retriever)

    def search(self, query: str, count: int) -> list[tuple[Passage, float]]:
        """The best passages with their scores, best first; passages that share no word with the query are left out."""
        known = [word for word in words(query) if word in self._vocabulary]
        if not known:
            return []
        found, scores = self._retriever.retrieve(
            [known],
            k=min(count, len(self.passages)),
            show_progress=False,
            backend_selection="numpy",  # Not JAX on an accelerator.
        )
        pairs = zip(found[0].tolist(), scores[0].tolist(), strict=True)
        return [(self.passages[index], score) for index, score in pairs if score > 0]

    def save(self, folder: str | pathlib.Path) -> None:
        """Write the index to a new folder, all or nothing.

        Raises:
          LacyError: the folder exists, or cannot be written.
        """
        folder = pathlib.Path(folder)
        if folder.exists():
            raise LacyError(f"cannot write the index {folder}: it exists; remove it or choose another folder")
        temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            temporary.mkdir(parents=True)
            lines = (json.dumps([p.title, p.text], ensure_ascii=False) + "\n" for p in self.passages)
            (temporary / _FILES[0]).write_text("".join(lines), encoding="utf-8")
            self._retriever.save(str(temporary / _FILES[1]))
            temporary.rename(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise LacyError(f"cannot write the index {folder}: {error.strerror or error}") from error

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> PassageIndex:
        """Inverse of `save`.

        Raises:
          DataError: missing or damaged.
        """
        folder = pathlib.Path(folder)
        try:
            lines = split_lines((folder / _FILES[0]).read_bytes())
            passages = [_passage(parse_line(line)) for line in lines]
            retriever = bm25s_library().BM25.load(str(folder / _FILES[1]))
            index = cls(passages, retriever)
            index._check()
        except Exception as error:  # For damaged arrays numpy raises almost anything.
            raise DataError(
                f"index {folder}: missing or damaged ({' '.join(str(error).split())[:120]}); build it again"
            ) from error
        return index

    def _check(self) -> None:
        """Raises ValueError if the index does not match the passages."""
        scores = self._retriever.scores
        begins, places = scores["indptr"], scores["indices"]
        good = (
            (scores["data"].dtype.kind, begins.dtype.kind, places.dtype.kind) == ("f", "i", "i")
            and scores["num_docs"] == len(self.passages) > 0
            and begins[0] == 0
            and begins[-1] == len(places) == len(scores["data"])
            and bool(np.all(np.diff(begins) >= 0) and np.all(np.isfinite(scores["data"])))
            and bool(np.all((places >= 0) & (places < len(self.passages))))
            and all(
                type(at) is int and 0 <= at < len(begins) - 1 for word, at in self._vocabulary.items() if word
            )
        )
        if not good:
            raise ValueError("the index is not that of the passages")
        self.search(next(filter(None, self._vocabulary)), 1)  # Tests the stored parameters too.


def _passage(value: Any) -> Passage:
    title, text = value
    if not isinstance(title, str) or not isinstance(text, str):
        raise ValueError("a passage that is no text")
    return Passage(title, text)


def open_index(path: str) -> PassageIndex:
    """The index in a folder (`PassageIndex.save`), or of the documents of a JSONL corpus (a file or a glob).

    Raises:
      DataError: missing, damaged or empty, or a record that is not a document.
    """
    if epath.Path(path).is_dir():
        return PassageIndex.load(path)
    return PassageIndex.build(read_documents(path))


def read_documents(path: str, field: str = "config.generate.partner") -> Iterator[Document]:
    """The documents of JSONL files (`text`, optional `title` and `id`; may be compressed); `field` as in `find_files`.

    Raises:
      DataError: no such file, or a line (named) that is not a document.
    """
    for file in find_files(path, field):
        for record in read_jsonl(file, "text"):
            try:
                document = record.parse()
            except BadRecord as error:
                raise DataError(f"{record.where} {error}") from None
            if document is not None:
                yield document

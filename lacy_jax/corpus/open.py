"""`open_corpus`: from a config to a stream of documents."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ml_collections
from etils import epath

from lacy_jax.corpus import readers
from lacy_jax.corpus.compression import find_files
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.lmlm import ANNOTATED, read_lmlm
from lacy_jax.corpus.mediawiki import read_mediawiki
from lacy_jax.corpus.tables import dataset_files, read_table
from lacy_jax.corpus.wikitext import EDITION as MARKUP_EDITION
from lacy_jax.corpus.world import World
from lacy_jax.errors import DataError
from lacy_jax.registry import Registry

_SAMPLE = 1 << 20  # Bytes hashed at each end of a file for its fingerprint.


class Corpus(Protocol):
    """A stream of documents that can be read any number of times.

    Attributes:
      name: shown to people and recorded in the dataset metadata.
      fingerprint: hex; changes if the documents may have changed.
      skipped: bad records left out by the last `shard` or iteration so far (`on_bad_record = "skip"`).
      dropped: what the reader left out of the texts of the last `shard` or iteration so far: kind -> how many.
    """

    name: str
    fingerprint: str
    skipped: int
    dropped: collections.Counter[str]

    def __iter__(self) -> Iterator[Document]:
        """All documents; memory does not grow with their number."""

    def shard(self, i: int, n: int) -> Iterator[tuple[int, Document]]:
        """(k, document) for the records k with k % n == i.

        k counts all records, including bad ones, so it is the same for every (i, n); only this share is parsed.
        """


def open_corpus(config: ml_collections.ConfigDict) -> Corpus:
    """The corpus that `config` (the `corpus` group of a run's config) describes.

    Raises:
      ConfigError: unknown kind.
      DataError: no file there, or a file that cannot be read. Iterating raises DataError for a bad record
        (naming file and line; with on_bad_record = "skip" it is counted instead) and for a corpus without a
        single document.
    """
    return READERS.named(config.kind).open(config)


@dataclasses.dataclass(frozen=True)
class Reader:
    """One kind of corpus.

    Attributes:
      name: as in the config field `corpus.kind`.
      description: one line for help texts and docs: what it reads, and what `corpus.path` is.
      open: the config group `corpus` -> the corpus; `from_files` makes one from a function that reads a file.
      edition: part of a corpus' fingerprint; changes when the reader makes other documents from the same files.
    """

    name: str
    description: str
    open: Callable[[ml_collections.ConfigDict], Corpus] = dataclasses.field(repr=False)
    edition: str = ""


FileReader = Callable[[str, ml_collections.ConfigDict], Iterator[readers.Record]]
"""(path of a file, config group `corpus`) -> its records."""


def _named_files(config: ml_collections.ConfigDict) -> list[str]:
    return find_files(config.path)


def from_files(
    read: FileReader, find: Callable[[ml_collections.ConfigDict], list[str]] = _named_files
) -> Callable[[ml_collections.ConfigDict], Corpus]:
    """Opens a corpus that is stored in files.

    Args:
      read: a function of a module, so that the corpus can be sent to other processes.
      find: gives its files; by default those that `corpus.path` (a file or a glob) names.
    """

    def open_files(config: ml_collections.ConfigDict) -> Corpus:
        files = find(config)
        fingerprint = _fingerprint_files(files, config)
        records = functools.partial(_read_all, read, files, config)
        return RecordCorpus(f"{config.kind}:{config.path}", fingerprint, records, config)

    return open_files


def _read_all(
    read: FileReader, files: list[str], config: ml_collections.ConfigDict
) -> Iterator[readers.Record]:
    return itertools.chain.from_iterable(read(file, config) for file in files)


def world_of(config: ml_collections.ConfigDict) -> World | None:
    """The synthetic world that the config group `corpus` describes; None if it describes another corpus."""
    return World(config.people, config.world_seed) if config.kind == "world" else None


def _open_world(config: ml_collections.ConfigDict) -> Corpus:
    world = World(config.people, config.world_seed)
    return WorldCorpus(world, config.texts_per_person, config.max_documents)


def _open_tfds(config: ml_collections.ConfigDict) -> Corpus:
    if not config.path:
        raise DataError("config.corpus.path is empty: give the name of a TFDS dataset or the folder of one")
    info = readers.open_tfds(config.path, config.split).dataset_info
    content = [info.full_name, config.split, str(info.splits[config.split].num_examples), config.text_field]
    content += [str(config.max_documents), *_cut(config)]
    fingerprint = hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
    records = functools.partial(readers.read_tfds, config.path, config.split, config.text_field)
    return RecordCorpus(f"tfds:{info.full_name}/{config.split}", fingerprint, records, config)


def _cut(config: ml_collections.ConfigDict) -> list[str]:
    """What `max_chars` adds to a fingerprint: nothing if texts are not shortened."""
    return [str(config.max_chars)] if config.max_chars else []


def opening(text: str, max_chars: int) -> str:
    """The first sentences of `text` that fit in `max_chars` characters; if not even one fits, its first words."""
    if len(text) <= max_chars:
        return text
    head = text[: max_chars + 1]
    end = max(head.rfind(". ") + 1, head.rfind("\n"))
    return head[: end if end > 0 else max(head.rfind(" "), 0) or max_chars].rstrip()


def _opening_of(document: Document, max_chars: int) -> Document:
    text = opening(document.text, max_chars)
    judge = document.judge
    if judge is not None:
        judge = tuple((start, min(end, len(text))) for start, end in judge if start < len(text))
    return dataclasses.replace(document, text=text, judge=judge)


def _fingerprint_files(files: list[str], config: ml_collections.ConfigDict) -> str:
    """Hash of names, sizes and the first and last MiB of each file, and of how they are read."""
    digest = hashlib.sha256(
        f"{config.kind}\n{config.text_field}\n{config.max_documents}\n{config.on_bad_record}\n".encode()
    )
    how = [*_cut(config), READERS.digest(config.kind), READERS[config.kind].edition]
    digest.update("".join(how).encode())
    for path in files:
        try:
            with epath.Path(path).open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                digest.update(f"{os.path.basename(path)}\n{size}\n".encode())
                for start in (0, max(size - _SAMPLE, 0)):
                    stream.seek(start)
                    digest.update(stream.read(_SAMPLE))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:16]


class RecordCorpus:
    """A corpus made from a reader's records; see `Corpus`."""

    def __init__(
        self, name: str, fingerprint: str, records: Callable[[], Iterator[readers.Record]], config: Any
    ):  # fmt: skip
        self.name, self.fingerprint, self.skipped = name, fingerprint, 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self._records = records
        self._skip_bad = config.on_bad_record == "skip"
        self._limit = config.max_documents or None
        self._max_chars = config.max_chars

    def __iter__(self) -> Iterator[Document]:
        for _, document in self.shard(0, 1):
            yield document

    def shard(self, i: int, n: int) -> Iterator[tuple[int, Document]]:
        self.skipped = 0
        self.dropped.clear()
        found = 0
        k = -1
        for k, record in enumerate(itertools.islice(self._records(), self._limit)):
            if k % n != i:
                continue
            try:
                document = record.parse()
            except readers.BadRecord as error:
                if not self._skip_bad:
                    advice = "config.corpus.on_bad_record=skip leaves it out"
                    raise DataError(f"{record.where}: bad record: {error} ({advice})") from None
                self.skipped += 1
                continue
            if document is not None:
                found += 1
                self.dropped.update(dict(document.dropped))
                yield k, _opening_of(document, self._max_chars) if self._max_chars else document
        # A share of a corpus may be empty, but not the whole corpus, and its records may not all be bad.
        if not found and (k < 0 or n == 1):
            bad = f": all {self.skipped} records are bad" if self.skipped else ""
            raise DataError(f"empty corpus: {self.name} has no document{bad}")


class WorldCorpus:
    """The texts of a world: `texts_per_person` wordings of each person, person by person within a wording."""

    def __init__(self, world: World, texts_per_person: int, max_documents: int = 0):
        self.world = world
        self.name = f"world:{world.size} people, seed {world.seed}"
        self.skipped = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self._count = world.size * texts_per_person
        if max_documents:
            self._count = min(self._count, max_documents)
        self.fingerprint = hashlib.sha256(f"{world.fingerprint}\n{self._count}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Document]:
        for _, document in self.shard(0, 1):
            yield document

    def shard(self, i: int, n: int) -> Iterator[tuple[int, Document]]:
        for k in range(i, self._count, n):
            variant, person = divmod(k, self.world.size)
            yield k, self.world.text(person, variant)


def _jsonl(path: str, config: ml_collections.ConfigDict) -> Iterator[readers.Record]:
    return readers.read_jsonl(path, config.text_field)


def _text(path: str, config: ml_collections.ConfigDict) -> Iterator[readers.Record]:
    return readers.read_text(path)


def _mediawiki(path: str, config: ml_collections.ConfigDict) -> Iterator[readers.Record]:
    return read_mediawiki(path)


def _table(path: str, config: ml_collections.ConfigDict) -> Iterator[readers.Record]:
    return read_table(path, (config.text_field, "id", "title"))


def _dataset_files(config: ml_collections.ConfigDict) -> list[str]:
    return dataset_files(config.path, config.split)


def _lmlm(path: str, config: ml_collections.ConfigDict) -> Iterator[readers.Record]:
    return read_lmlm(path, ANNOTATED if config.text_field == "text" else config.text_field)


def _lmlm_files(config: ml_collections.ConfigDict) -> list[str]:
    folder = bool(config.path) and epath.Path(config.path).is_dir()
    return _dataset_files(config) if folder else find_files(config.path)


READERS: Registry[Reader] = Registry("corpus reader", (
    Reader("world", "a synthetic world of `corpus.people`, twelve facts each, in `corpus.texts_per_person` wordings; no path", _open_world),
    Reader("jsonl", "file or glob: an object a line with `corpus.text_field`, and optionally `id` and `title`", from_files(_jsonl)),
    Reader("text", "file or glob: a file is one document, unless lines `<|endoftext|>` split it", from_files(_text)),
    Reader("mediawiki", "XML dump: articles without redirects, markup stripped", from_files(_mediawiki), MARKUP_EDITION),
    Reader("parquet", "file or glob of Parquet or Arrow files: a row with `corpus.text_field`, and optionally `id` and `title`", from_files(_table)),
    Reader("hf", "folder of Hugging Face `datasets`: of `save_to_disk`, or of Parquet files; `corpus.split` of it", from_files(_table, _dataset_files)),
    Reader("lmlm", "LMLM's annotated text, with its lookups as labels of policy `judge`: JSON, JSONL, Parquet, or a folder", from_files(_lmlm, _lmlm_files)),
    Reader("tfds", "NAME, NAME/CONFIG:VERSION or the folder of a prepared dataset; read without TensorFlow", _open_tfds),
))  # fmt: skip

"""One shard of a build: documents in, two files of records out (train and valid), one process."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import ml_collections
import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.corpus import open_corpus
from lacy_jax.corpus.document import Document
from lacy_jax.dataset.metadata import BUILD_FOLDER, SPLITS, SplitCounts
from lacy_jax.dataset.records import STORED_LABELS, Record
from lacy_jax.dataset.writer import ShardWriter
from lacy_jax.errors import DataError
from lacy_jax.labels import align, get_labeller, label_pieces
from lacy_jax.labels.spans import Labeller
from lacy_jax.run_files import TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.typed_json import from_json

_REPORT_EVERY = 32  # Documents between two progress reports.


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """Counts of a finished shard.

    Attributes:
      splits: counts by split.
      skipped: bad records that were left out.
      dropped: what the reader left out of the texts, by kind.
      judged: whether the corpus came with a judge's labels, which are stored beside the records.
    """

    splits: dict[str, SplitCounts]
    skipped: int
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    judged: bool = False


def choose_split(document_id: str, valid_fraction: float) -> str:
    """The split of a document by the hash of its id: valid with probability `valid_fraction`, else train."""
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "valid" if int.from_bytes(digest, "big") < valid_fraction * 2**64 else "train"


def make_record(document: Document, tokenizer: Tokenizer, labeller: Labeller) -> Record:
    """Tokenise and label a document: the tokenizer's prefix (mostly bos), the text's pieces, and eos.

    Raises:
      DataError: the text cannot be encoded, or the labeller gave a span outside the text.
    """
    ids, starts, ends = tokenizer.encode_with_offsets(document.text)
    tokens = np.append(tokenizer.with_prefix(ids), np.int32(tokenizer.eos_id))
    before = len(tokens) - len(ids) - 1
    labels = label_pieces(labeller, document, starts)

    def bits(spans: tuple[tuple[int, int], ...]) -> np.ndarray:
        try:
            inner = align(spans, starts, ends, document.text)
        except ValueError as error:
            raise DataError(f"labeller {labeller.name}: {error}; it must give character offsets") from error
        return np.concatenate((np.zeros(before, bool), np.asarray(inner, bool), [False]))

    flags = {name: bits(getattr(labels, name)) for name in STORED_LABELS}
    if document.judge is not None:
        flags["judge"] = bits(document.judge)
    return Record(tokens, flags, document.id, document.title)


def record_file(path: epath.Path, split: str, shard: int) -> epath.Path:
    """The file of a finished shard of a split until the dataset is finished."""
    return path / BUILD_FOLDER / f"{split}-{shard:05d}.array_record"


def lengths_part(path: epath.Path, split: str, shard: int) -> epath.Path:
    """The file of the token counts of a finished shard."""
    return path / BUILD_FOLDER / f"{split}-{shard:05d}.npy"


def judge_part(path: epath.Path, split: str, shard: int) -> epath.Path:
    """The file of the judge's bits of a finished shard, bool [tokens]."""
    return path / BUILD_FOLDER / f"{split}-{shard:05d}-judge.npy"


def build_shard(
    config: ml_collections.ConfigDict, path: epath.Path, shard: int, report: Callable[[int, int], None]
) -> None:
    """Build shard `shard` of the dataset in folder `path`, which holds the tokenizer.

    Args:
      report: called from time to time with the (documents, tokens) done since the last call.

    Raises:
      DataError: a bad record (unless the config skips them).
      LacyError: the disk is full; the shard does not count as finished.
    """
    tokenizer = Tokenizer.load(path / TOKENIZER_FILE)
    labeller = get_labeller(config, config.corpus.kind)
    corpus = open_corpus(config.corpus)
    writers = {split: ShardWriter(record_file(path, split, shard), tokenizer.vocab_size) for split in SPLITS}
    judged: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    skipped = documents = tokens = 0
    with writers["train"], writers["valid"]:
        for _, document in corpus.shard(shard, config.dataset.shards):
            try:
                record = make_record(document, tokenizer, labeller)
            except DataError as error:
                if config.corpus.on_bad_record != "skip":
                    raise DataError(f"document {document.id!r}: {error}") from error
                skipped += 1
                continue
            split = choose_split(document.id, config.dataset.valid_fraction)
            writers[split].write(record)
            if "judge" in record.labels:
                judged[split].append(record.labels["judge"])
            documents, tokens = documents + 1, tokens + len(record.tokens)
            if documents == _REPORT_EVERY:
                report(documents, tokens)
                documents = tokens = 0
    report(documents, tokens)
    for (
        split,
        writer,
    ) in writers.items():  # The result file comes last, because it marks the shard as finished.
        files.write_array(lengths_part(path, split, shard), writer.lengths())
        files.write_array(judge_part(path, split, shard), np.concatenate([np.zeros(0, bool), *judged[split]]))
    counts = {split: writer.counts() for split, writer in writers.items()}
    _write_result(
        path, shard, ShardResult(counts, skipped + corpus.skipped, dict(corpus.dropped), any(judged.values()))
    )


def _result_file(path: epath.Path, shard: int) -> epath.Path:
    return path / BUILD_FOLDER / f"{shard:05d}.json"


def _write_result(path: epath.Path, shard: int, result: ShardResult) -> None:
    files.write_json(_result_file(path, shard), dataclasses.asdict(result))


def read_result(path: epath.Path, shard: int) -> ShardResult | None:
    """The result of a shard that an earlier build finished; None if it has to be built."""
    file = _result_file(path, shard)
    if not file.exists():
        return None
    try:
        return from_json(ShardResult, files.read_json(file, "build state"))
    except ValueError as error:
        raise DataError(
            f"build state unreadable: {file}: {error}: delete it, and its shard is made again"
        ) from None

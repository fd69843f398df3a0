"""`metadata.json` of a dataset folder. It is written last, so its presence means that the dataset is finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.run_files import METADATA_FILE
from lacy_jax.typed_json import from_json

FORMAT = 1
SPLITS = ("train", "valid")
MOST_KINDS = 200
"""Kinds of dropped content that the metadata names; the others are summed."""
BUILD_FOLDER = ".build"
"""The state of an unfinished build, from which it resumes; removed when the dataset is finished."""


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """Counts of one split.

    Attributes:
      documents, tokens, factual_tokens, nongrammatical_tokens: totals; tokens include bos and eos.
      shard_documents: documents per non-empty shard, in file order.
      shard_bytes: size of each of these files, so that a truncated one is found before training starts.
    """

    documents: int = 0
    tokens: int = 0
    factual_tokens: int = 0
    nongrammatical_tokens: int = 0
    shard_documents: tuple[int, ...] = ()
    shard_bytes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of a finished dataset.

    Attributes:
      tokenizer_hash: hex hash of the SentencePiece model; a run with another tokenizer refuses the dataset.
      vocab_size: base vocabulary V; all stored ids are below it.
      pad_id: id of padding positions.
      labeller, labeller_version: what made the factual labels.
      corpus_name, corpus_fingerprint: which text it is.
      splits: counts by split name ("train", "valid").
      skipped: bad records of the corpus that were left out.
      dropped: what the corpus reader left out of the texts, by kind, most frequent first (at most `MOST_KINDS`).
      extras: names of stored per-token extras (such as "judge", "reference_nll") of any split.
      versions: versions of the software that wrote it.
      parameters: what the content depends on; a build with other parameters is refused.
      source: the config groups it was built from.
    """

    tokenizer_hash: str
    vocab_size: int
    pad_id: int
    labeller: str
    labeller_version: str
    corpus_name: str
    corpus_fingerprint: str
    splits: dict[str, SplitCounts]
    skipped: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    extras: tuple[str, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @property
    def documents(self) -> int:
        """Documents of all splits."""
        return sum(counts.documents for counts in self.splits.values())

    @property
    def tokens(self) -> int:
        """Tokens of all splits, including bos and eos."""
        return sum(counts.tokens for counts in self.splits.values())

    @property
    def factual_rate(self) -> float:
        """Share of factual tokens over all splits, in [0, 1]."""
        return sum(counts.factual_tokens for counts in self.splits.values()) / max(self.tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields and the derived figures, JSON-safe."""
        return {
            **dataclasses.asdict(self),
            "factual_rate": self.factual_rate,
            "fingerprint": self.fingerprint,
        }

    def summary(self) -> str:
        """A few lines for people."""
        counts = ", ".join(
            f"{name} {c.documents} documents {c.tokens} tokens" for name, c in self.splits.items()
        )
        skipped = f"; {self.skipped} bad records skipped" if self.skipped else ""
        most = ", ".join(f"{count} {kind}" for kind, count in list(self.dropped.items())[:8])
        dropped = f"left out of the texts: {most}{' ...' if len(self.dropped) > 8 else ''}\n" if most else ""
        return (
            f"{self.corpus_name}: {counts}{skipped}\n{dropped}"
            f"labels by {self.labeller} {self.labeller_version}: {self.factual_rate:.1%} of tokens factual; "
            f"tokenizer {self.tokenizer_hash}, {self.vocab_size} pieces"
        )

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the content and order of the records; part of the pipeline state."""
        counts = {name: dataclasses.asdict(c) for name, c in sorted(self.splits.items())}
        what = [
            self.format,
            self.tokenizer_hash,
            self.corpus_fingerprint,
            self.labeller,
            self.labeller_version,
            counts,
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def write_metadata(path: epath.PathLike, metadata: Metadata) -> None:
    """Write `metadata.json` atomically; from then on the dataset counts as finished."""
    value = dataclasses.asdict(metadata)
    value["factual_rate"] = round(metadata.factual_rate, 6)
    files.write_json(epath.Path(path) / METADATA_FILE, value)


def read_metadata(path: epath.PathLike) -> Metadata:
    """Metadata of the finished dataset in folder `path`.

    Raises:
      DataError: there is no dataset, it is unfinished, or it has another format.
      StorageError: the bucket refuses or does not answer.
    """
    files.check_storage(path)
    path = epath.Path(path)
    file = path / METADATA_FILE
    if not files.exists(file):
        bucket = "" if files.is_local(path) else ", or no such bucket"
        why = (
            "an unfinished build; run `lacy prepare` again to go on"
            if (path / BUILD_FOLDER).exists()
            else f"no dataset{bucket}; run `lacy prepare` first"
        )
        raise DataError(f"dataset {path}: {METADATA_FILE} not found: {why}")
    value = files.read_json(file, "dataset metadata")
    if isinstance(value, dict) and value.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"dataset {path}: format {value['format']!r}, expected {FORMAT}: run `lacy prepare` again"
        )
    try:
        if isinstance(value, dict):
            value.pop("factual_rate", None)
        return from_json(Metadata, value)
    except ValueError as error:
        raise DataError(
            f"dataset metadata unreadable: {file}: {error}; run `lacy prepare` again in another folder"
        ) from error

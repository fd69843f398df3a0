"""`lacy prepare`: from a corpus to a dataset, in parallel and resumable.

During a build the folder contains `.build/`: the parameters of the build and, for each finished shard, its records,
token counts and a result file. A restart keeps finished shards and builds the others. When all shards are there, they
get their final names, and `metadata.json` is written last. The content depends on the corpus, the parameters and the
number of shards, never on the number of processes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from lacy_jax import __version__, files
from lacy_jax.corpus import Corpus, open_corpus
from lacy_jax.dataset import beam, workers
from lacy_jax.dataset.claim import claimed
from lacy_jax.dataset.extra_writer import fill_extra
from lacy_jax.dataset.metadata import (
    BUILD_FOLDER,
    FORMAT,
    SPLITS,
    Metadata,
    read_metadata,
)
from lacy_jax.dataset.shard import ShardResult, judge_part, lengths_part, read_result, record_file
from lacy_jax.dataset.source import shard_name
from lacy_jax.dataset.writer import finish, merge_counts, merge_dropped
from lacy_jax.errors import DataError
from lacy_jax.labels import Labeller, get_labeller
from lacy_jax.progress import Progress
from lacy_jax.run_files import METADATA_FILE, TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer, train_tokenizer


def build_dataset(
    config: ml_collections.ConfigDict,
    path: epath.PathLike,
    runner: str = "",
    runner_options: Sequence[str] = (),
) -> Metadata:
    """Build the dataset that `config` describes in folder `path`; return at once if it is already there.

    Args:
      config: its groups corpus, tokenizer, labels and dataset are read; `dataset.workers` processes share the
        shards, so at most `dataset.shards` of them have work.
      path: folder that will hold the tokenizer, the shards and the metadata, local or gs://; shards for a bucket are
        written among the temporary files, and uploaded one by one.
      runner: an Apache Beam runner that builds the shards instead ("DirectRunner"); see `dataset.beam`.
      runner_options: Beam's flags for it.

    Raises:
      DataError: the corpus is missing, empty or has a bad record; the folder holds a dataset or an unfinished build
        with other parameters; another process is building there; a worker died.
      LacyError: the disk is full. Finished shards are kept, and the next run goes on from them.
    """
    path, corpus, labeller, parameters = _checked(config, path)
    if files.exists(path / METADATA_FILE):
        return read_metadata(path)
    with _claimed(path, parameters):
        tokenizer = _get_tokenizer(config, path, corpus)
        results = _build_shards(config, path, runner, runner_options)
        splits = {split: merge_counts([r.splits[split] for r in results]) for split in SPLITS}
        metadata = Metadata(
            tokenizer_hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            labeller=labeller.name,
            labeller_version=labeller.version,
            corpus_name=corpus.name,
            corpus_fingerprint=corpus.fingerprint,
            splits=splits,
            skipped=sum(result.skipped for result in results),
            dropped=merge_dropped(result.dropped for result in results),
            extras=("judge",) if any(result.judged for result in results) else (),
            versions=_versions(),
            parameters=parameters,
            source=_source(config),
        )
        if not metadata.documents:
            raise DataError(
                f"corpus {corpus.name}: no documents; check config.corpus.path and config.corpus.text_field"
            )
        lengths = _collect(path, results)
        for name in metadata.extras:
            for split in SPLITS:
                if metadata.splits[split].documents:
                    fill_extra(path, name, split, lengths[split], _judged(path, split, len(results)))
        finish(path, metadata, lengths)
    return read_metadata(path)


def preview(config: ml_collections.ConfigDict, path: epath.PathLike) -> dict[str, Any]:
    """What `build_dataset` would do, after the checks that it makes first; labels one document, and writes nothing.

    Raises:
      DataError: as `build_dataset`, as far as it can be known.
    """
    path, corpus, labeller, parameters = _checked(config, path)
    document = next(iter(corpus), None)
    if document is None:
        raise DataError(f"corpus {corpus.name}: no documents; check config.corpus.path")
    there = files.exists(path / METADATA_FILE)
    shards = config.dataset.shards
    missing = [] if there else [shard for shard in range(shards) if read_result(path, shard) is None]
    return {
        "path": str(path),
        "corpus": corpus.name,
        "first_document": document.id,
        "factual_spans": len(labeller.label(document).factual),
        "labeller": f"{labeller.name} {parameters['labeller version']}",
        "tokenizer": config.tokenizer.path or f"to be trained, {config.tokenizer.vocab_size} pieces",
        "shards": shards,
        "shards_to_build": len(missing),
        "workers": config.dataset.workers,
    }


def _checked(
    config: ml_collections.ConfigDict, path: epath.PathLike
) -> tuple[epath.Path, Corpus, Labeller, dict[str, Any]]:
    """(path, corpus, labeller, parameters) of a build; a dataset that is there already agrees with them."""
    if not files.is_local(path) and not os.fspath(path).startswith("gs://"):
        raise DataError(f"config.dataset.path = {path}: must be a local folder or gs://...")
    files.check_storage(path)
    path = epath.Path(path)
    corpus = open_corpus(config.corpus)
    labeller = get_labeller(config, config.corpus.kind)
    parameters = _parameters(config, corpus.fingerprint, labeller.name, labeller.version)
    if files.exists(path / METADATA_FILE):
        _check_parameters(path, read_metadata(path).parameters, parameters, "holds a dataset")
    return path, corpus, labeller, parameters


def _parameters(
    config: ml_collections.ConfigDict, fingerprint: str, labeller: str, version: str
) -> dict[str, Any]:
    """The parameters that the dataset's content depends on, by dotted name; JSON-safe."""
    corpus = {f"corpus.{k}": v for k, v in config.corpus.items() if k != "path"}
    if config.tokenizer.path:
        tokenizer: dict[str, Any] = {"tokenizer.hash": Tokenizer.load(config.tokenizer.path).hash}
    else:
        tokenizer = {f"tokenizer.{k}": v for k, v in config.tokenizer.items() if k != "path"}
    return {
        "format": FORMAT,
        **corpus,
        **tokenizer,
        "labeller": labeller,
        "labeller version": version,
        "dataset.shards": config.dataset.shards,
        "dataset.valid_fraction": config.dataset.valid_fraction,
        # Last, because it changes with several of the above, and the error names the first difference.
        "corpus content": fingerprint,
    }


def _source(config: ml_collections.ConfigDict) -> dict[str, Any]:
    sections = {name: dict(config[name].items()) for name in ("corpus", "tokenizer", "labels")}
    dataset = {name: config.dataset[name] for name in ("shards", "valid_fraction")}
    return json.loads(json.dumps({**sections, "dataset": dataset}))


def _check_parameters(path: epath.Path, have: dict[str, Any], want: dict[str, Any], what: str) -> None:
    different = [name for name in {**have, **want} if not _agree(name, have.get(name), want.get(name))]
    if different:
        name = different[0]
        more = f" (and {len(different) - 1} more: {', '.join(different[1:4])})" if len(different) > 1 else ""
        raise DataError(
            f"{path} {what} made with {name} = {have.get(name)!r}, but the config asks for {want.get(name)!r}{more}: "
            "choose another dataset.path or delete the folder"
        )


def _agree(name: str, have: Any, want: Any) -> bool:
    """Whether two values are equal; an older labeller version lacks the hash of the spaCy pipeline."""
    return have == want or (name == "labeller version" and str(want).startswith(f"{have}+"))


@contextlib.contextmanager
def _claimed(path: epath.Path, parameters: dict[str, Any]) -> Iterator[None]:
    """Hold the folder for this build, and check that an unfinished build in it has the same parameters."""
    folder = path / BUILD_FOLDER
    with claimed(path):
        begun = folder / "parameters.json"
        # A build that failed before its tokenizer (on an empty corpus, for example) left nothing worth keeping.
        if begun.exists() and (path / TOKENIZER_FILE).exists():
            _check_parameters(
                path, files.read_json(begun, "build state"), parameters, "holds an unfinished build"
            )
        else:
            files.write_json(begun, parameters)
        for left_over in itertools.chain(folder.glob(".*.tmp"), path.glob(".*.tmp")):
            left_over.unlink(missing_ok=True)
        yield


def _get_tokenizer(config: ml_collections.ConfigDict, path: epath.Path, corpus: Any) -> Tokenizer:
    """The dataset's tokenizer: that of an earlier build, the configured one, or one trained on the corpus."""
    file = path / TOKENIZER_FILE
    if file.exists():
        return Tokenizer.load(file)
    if config.tokenizer.path:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    else:
        documents = itertools.islice(iter(corpus), config.tokenizer.max_training_documents)
        with Progress("tokenizer: reading", unit="doc") as progress:

            def texts() -> Iterator[str]:
                for document in documents:
                    progress.update()
                    yield document.text

            tokenizer = Tokenizer.from_bytes(train_tokenizer(texts(), config.tokenizer))
    tokenizer.save(file)
    return tokenizer


def _build_shards(
    config: ml_collections.ConfigDict, path: epath.Path, runner: str, runner_options: Sequence[str]
) -> list[ShardResult]:
    shards = range(config.dataset.shards)
    missing = _incomplete(path, [read_result(path, shard) for shard in shards])
    done = len(shards) - len(missing)
    label = f"dataset: {len(missing)} shards" + (f" ({done} already there)" if done else "")
    with Progress(label, unit="doc", total=config.corpus.max_documents or None) as progress:
        if runner and missing:
            beam.build_shards(config, path, missing, runner, runner_options)
        else:
            workers.build_shards(config, path, missing, progress)
    files.forget_listing(path / BUILD_FOLDER)  # Workers have written there.
    results = [read_result(path, shard) for shard in shards]
    return [result for result in results if result is not None]


def _incomplete(path: epath.Path, results: list[ShardResult | None]) -> list[int]:
    """Shards to build: those without a result, and those with missing files or files of another size."""
    missing = {shard for shard, result in enumerate(results) if result is None}
    moved = _final_names(path, [r for r in results if r is not None]) if not missing else {}
    for shard, result in enumerate(results):
        for split, counts in result.splits.items() if result else ():
            places = [record_file(path, split, shard), moved.get((split, shard))]
            sizes = [place.stat().length for place in places if place is not None and place.exists()]
            if not lengths_part(path, split, shard).exists() or any(
                n not in sizes for n in counts.shard_bytes
            ):
                missing.add(shard)
    return sorted(missing)


def _final_names(path: epath.Path, results: list[ShardResult]) -> dict[tuple[str, int], epath.Path]:
    """(split, shard) -> final file. A shard without records of a split has no file, and the numbers have no gaps."""
    names = {}
    for split in SPLITS:
        full = [shard for shard, result in enumerate(results) if result.splits[split].documents]
        for number, shard in enumerate(full):
            names[split, shard] = path / shard_name(split, number, len(full))
    return names


def _collect(path: epath.Path, results: list[ShardResult]) -> dict[str, np.ndarray]:
    """Move the shards to their final names; returns the token counts per split.

    Idempotent: if it is interrupted between two renames, the next run completes it.
    """
    for (split, shard), final in _final_names(path, results).items():
        built = record_file(path, split, shard)
        if built.exists():
            built.replace(final)
    shards = range(len(results))
    return {split: np.concatenate([_lengths(path, split, shard) for shard in shards]) for split in SPLITS}


def _lengths(path: epath.Path, split: str, shard: int) -> np.ndarray:
    return files.read_array(lengths_part(path, split, shard), "build state", np.uint32)


def _judged(path: epath.Path, split: str, shards: int) -> Iterator[np.ndarray]:
    """The judge's bits of each record of a split, in order."""
    for shard in range(shards):
        bits = files.read_array(judge_part(path, split, shard), "build state", np.bool_)
        ends = np.cumsum(_lengths(path, split, shard), dtype=np.int64)
        yield from (bits[end - size : end] for end, size in zip(ends, np.diff(ends, prepend=0), strict=True))


def _versions() -> dict[str, str]:
    versions = {"lacy_jax": __version__, "python": platform.python_version()}
    for package in ("sentencepiece", "spacy", "tensorflow-datasets", "array_record", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions

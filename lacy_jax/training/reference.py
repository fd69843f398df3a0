"""The frozen reference model of a policy: run beside training, or its losses stored in the dataset before (`lacy score`)."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.extra_writer import write_extra
from lacy_jax.dataset.source import RecordSource, open_split, splits_of
from lacy_jax.errors import CheckpointError, ConfigError, DataError, LacyError
from lacy_jax.objectives import POLICIES, TokenStatistics
from lacy_jax.objectives.scoring import score_documents
from lacy_jax.progress import Progress
from lacy_jax.training import sharding
from lacy_jax.training.run import Run, load_run
from lacy_jax.training.step import score

EXTRA = "reference_nll"
PART_TOKENS = 1 << 22
"""Tokens per part of the work. A part is what an interruption can lose, and what is shared between processes."""


def load_reference(config: ml_collections.ConfigDict, tokenizer_hash: str, mesh: Mesh) -> Run | None:
    """The frozen reference model of `objective.reference`; None if the reference nll is in the dataset or not needed.

    Raises:
      ConfigError: its tokenizer differs from this run's, or its context is shorter than this run's rows.
      CheckpointError: see `load_run`.
    """
    field = config.objective.reference
    if EXTRA not in POLICIES[config.objective.policy].labels or field == "dataset":
        return None
    run = load_run(field, mesh=mesh)
    if run.tokenizer.hash != tokenizer_hash:
        raise ConfigError(
            f"config.objective.reference = {field!r}: its tokenizer is {run.tokenizer.hash}, the dataset's {tokenizer_hash}; "
            "train the reference on the same dataset"
        )
    if run.model_config.max_seq_len < config.input.seq_len:
        raise ConfigError(
            f"config.objective.reference = {field!r}: its context of {run.model_config.max_seq_len} is shorter than "
            f"config.input.seq_len = {config.input.seq_len}"
        )
    return run


def reference_of(run: Run, mesh: Mesh) -> Run | None:
    """The reference model that a run was trained with; see `load_reference`.

    Raises:
      CheckpointError: it is now another model. Old checkpoints without fingerprints are not compared.
    """
    found = load_reference(run.config, run.tokenizer.hash, mesh)
    trained = run.meta.get("reference", {}).get("model")
    if found is not None and trained not in (None, found.fingerprint):
        raise CheckpointError(
            f"config.objective.reference = {run.config.objective.reference!r} is another model ({found.fingerprint}) than run "
            f"{run.workdir} was trained with ({trained}): restore it, or name its new folder"
        )
    return found


def score_dataset(
    workdir: epath.PathLike,
    dataset: epath.PathLike | None = None,
    *,
    step: int = 0,
    split: str = "",
    batch_size: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Store the loss of each token under a run's model as the dataset's extra `reference_nll`.

    Value i is the nll (nats) of token i given the tokens before it in its document, within the run's `input.seq_len`:
    longer documents are cut as in training. The first token of a document has 0.

    Finished parts are stored in the dataset's folder, so that an interrupted call can go on and processes that see the
    same folder can share the work; the process that finishes the last part of a split stores the extra.

    Args:
      workdir: the reference's run directory.
      dataset: folder; None = the one that the run was trained on.
      step: checkpoint; 0 = the latest.
      split: "train" or "valid"; "" = both, if they exist.
      batch_size: rows scored at once; 0 = the run's.
      shard: (index, count): this process does every `count`-th part.

    Returns:
      "dataset", "model" (the run's fingerprint), "step", and "splits": for each split "tokens", "nll" (mean over the
      targets; None while parts are missing) and "missing" (parts that other processes have not finished yet).

    Raises:
      ConfigError: the tokenizers differ, or the shard is impossible.
      CheckpointError: see `load_run`.
      DataError: there is no finished dataset, or no such split.
      LacyError: the disk is full.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(f"--shard={index}/{count}: expected I/N with I from 0 to N - 1")
    mesh = sharding.make_mesh(config_lib.get_default_config().mesh, jax.local_devices())
    run = load_run(workdir, step, mesh)
    folder = epath.Path(dataset) if dataset else config_lib.dataset_folder(run.config, run.workdir)
    scorer = _Scorer(run, mesh, batch_size or run.config.input.batch_size)
    found = {
        name: _score_split(open_split(folder, name), scorer, index, count)
        for name in splits_of(folder, split)
    }
    return {"dataset": str(folder), "model": run.fingerprint, "step": run.step, "splits": found}


class _Scorer:
    """Computes the nll of documents' tokens under a run's model, with parameters on a mesh."""

    def __init__(self, run: Run, mesh: Mesh, rows: int):
        self.run, self.context, self._rows = run, run.config.input.seq_len, rows
        compiled = jax.jit(
            lambda params, batch: score(run.definition, params, batch, mesh, run.config.objective.chunk)
        )

        def on_mesh(*arrays: np.ndarray) -> TokenStatistics:
            rows = len(arrays[0])
            padded: list[Any] = [np.pad(a, ((0, -rows % mesh.size), (0, 0))) for a in arrays]
            tokens, targets, positions, segment_ids = padded
            batch = Batch(tokens, targets, positions, segment_ids, segment_ids > 0, labels={})
            with jax.set_mesh(mesh):
                found = jax.device_get(compiled(run.params, sharding.put_batch(batch, mesh)))
            return jax.tree.map(lambda a: a[:rows], found)

        self._score = on_mesh

    def __call__(self, source: RecordSource, first: int, last: int) -> Float[np.ndarray, " tokens"]:
        """The nll of documents [first, last), end to end; 0 for the first token of each."""
        documents = [source[index].tokens for index in range(first, last)]
        found = score_documents(self._score, documents, self.context, rows=self._rows)
        return np.concatenate([np.append(np.float32(0), one.nll) for one in found])


def _score_split(source: RecordSource, scorer: _Scorer, index: int, count: int) -> dict[str, Any]:
    run, path, split = scorer.run, source.path, source.split
    if source.metadata.tokenizer_hash != run.tokenizer.hash:
        raise ConfigError(
            f"dataset {path} was made with tokenizer {source.metadata.tokenizer_hash}, run {run.workdir} has "
            f"{run.tokenizer.hash}: a reference must read the same tokens"
        )
    about = {"model": run.fingerprint, "context": scorer.context, "records": source.metadata.fingerprint}
    note = path / f"extra-{EXTRA}-{split}.json"
    tokens = int(source.offsets[-1])
    bounds = np.unique([*np.searchsorted(source.offsets, range(0, tokens, PART_TOKENS)), len(source)])
    parts = [(int(a), int(b)) for a, b in itertools.pairwise(bounds)]
    folder = path / ".score" / f"{about['model']}-{about['context']}-{about['records']}-{split}"

    def is_stored() -> bool:
        return (
            EXTRA in open_split(path, split).extras and note.exists() and about.items() <= _read(note).items()
        )

    if not is_stored():
        _score_parts(source, scorer, folder, parts[index::count])
        missing = sum(not (folder / f"{a}.npy").exists() for a, _ in parts)
        if missing and not is_stored():
            print(f"score: {split}: {missing} of {len(parts)} parts are not there yet", file=sys.stderr)
            return {"tokens": tokens, "nll": None, "missing": missing}
        note.unlink(missing_ok=True)
        try:
            write_extra(path, EXTRA, split, _by_record(source, folder, parts))
            files.write_json(note, {**about, "run": str(run.workdir), "step": run.step})
        except LacyError:
            if not is_stored():  # Otherwise another process finished at the same time and has cleaned up.
                raise
        shutil.rmtree(folder, ignore_errors=True)
        # The folder may hold parts of another split; epath raises ValueError for that.
        with contextlib.suppress(OSError, ValueError):
            folder.parent.rmdir()
    stored = open_split(path, split).extras[EXTRA]
    targets = tokens - int(np.count_nonzero(source.lengths))
    return {"tokens": tokens, "nll": float(stored.sum(dtype=np.float64)) / max(targets, 1), "missing": 0}


def _score_parts(
    source: RecordSource, scorer: _Scorer, folder: epath.Path, parts: list[tuple[int, int]]
) -> None:
    """Compute and write the parts that do not exist yet."""
    waiting = [(a, b) for a, b in parts if not (folder / f"{a}.npy").exists()]
    total = sum(int(source.offsets[b] - source.offsets[a]) for a, b in waiting)
    with Progress(f"score {source.split}", total=total, unit="tokens") as progress:
        for first, last in waiting:
            values = scorer(source, first, last)
            files.write_array(folder / f"{first}.npy", values)
            progress.update(len(values))


def _by_record(
    source: RecordSource, folder: epath.Path, parts: list[tuple[int, int]]
) -> Iterator[Float[np.ndarray, " n"]]:
    for first, last in parts:
        tokens = int(source.offsets[last] - source.offsets[first])
        values = files.read_array(
            folder / f"{first}.npy",
            "part of a reference",
            (np.dtype(np.float32), np.dtype(np.float64)),
            (tokens,),
        )
        yield from np.split(values, (source.offsets[first + 1 : last] - source.offsets[first]))


def _read(note: epath.Path) -> dict[str, Any]:
    """{} of a note that is damaged: it says nothing of the values beside it."""
    try:
        value = files.read_json(note, "note on an extra")
    except DataError:
        return {}
    return value if isinstance(value, dict) else {}

"""A run directory that does not come from training: parameters only, to be used or trained further.

`load_run` reads it, so everything that accepts a run accepts it: `lacy generate`, `lacy evaluate`, `checkpoint:DIR` as
partner, `objective.reference`, `train.init_from`, `lacy export`. Training cannot resume from it.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.export import provenance
from lacy_jax.export.folder import finished_folder
from lacy_jax.export.source import Source
from lacy_jax.run_files import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    DATASET_METADATA_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    METRICS_FOLDER,
    TOKENIZER_FILE,
)
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.metrics_files import read_metrics

_KEPT = (CHAT_TEMPLATE_FILE, DATASET_METADATA_FILE, METRICS_FILE, ENVIRONMENT_FILE)


def export_run(source: Source, out: pathlib.Path) -> dict[str, Any]:
    """`lacy export --format=run`: the parameters (averaged, cast) without optimiser state, and the run's records.

    Returns:
      The record that is also in OUT/lacy.json.

    Raises:
      ConfigError: `out` exists. CheckpointError, LacyError: the disk is full.
    """
    run = source.run
    record = provenance.describe(source, "run", {})
    with finished_folder(out) as folder:
        for name in _KEPT:
            if (run.workdir / name).exists():
                (folder / name).write_bytes((run.workdir / name).read_bytes())
        if (
            run.workdir / METRICS_FOLDER
        ).exists():  # The run directory is in a bucket, or was copied from one.
            lines = [json.dumps(row) + "\n" for row in read_metrics(run.workdir)]
            files.write_text(folder / METRICS_FILE, "".join(lines))
        write_run(folder, run.config, run.tokenizer, source.params, source.steps[-1], source.dtype)
        provenance.write(folder, record)
    return record


def write_run(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict,
    tokenizer: Tokenizer,
    params: Any,
    step: int = 0,
    dtype: str = "float32",
) -> None:
    """Write config.json, tokenizer.model and one checkpoint into an existing folder.

    Args:
      params: nested dict of float32 arrays.
      step: of the checkpoint.
      dtype: of the stored parameters; they are read back as float32.

    Raises:
      CheckpointError: the disk is full.
    """
    files.write_text(folder / CONFIG_FILE, config_lib.to_json(config))
    tokenizer.save(folder / TOKENIZER_FILE)
    identity = {"config": config_lib.training_fields(config), "data": {"tokenizer": tokenizer.hash}}
    stored = jax.tree.map(lambda x: jnp.asarray(x, jnp.dtype(dtype)), params)
    with Checkpointer(folder, config) as checkpointer:
        checkpointer.save(step, stored, None, {**identity, "dtype": dtype})

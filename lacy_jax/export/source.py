"""The parameters that leave: of one checkpoint, or the mean of the last ones."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath

from lacy_jax.errors import CheckpointError, ConfigError
from lacy_jax.export import tensors
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.run import Run, load_run


@dataclasses.dataclass(frozen=True)
class Source:
    """A run and the parameters taken from it.

    Attributes:
      run: as `load_run` gives it, with `params` below in place of its own.
      params: nested dict of float32 numpy arrays, already rounded to what will be stored.
      steps: checkpoints they are the mean of, ascending.
      dtype: they are stored in.
      call: whether CALL leaves with the model; without it a plain language model does, whose softmax is p_\\CALL.
    """

    run: Run
    params: Any
    steps: tuple[int, ...]
    dtype: str
    call: bool = True


def load_source(workdir: epath.PathLike, step: int = 0, average: int = 1, dtype: str = "float32") -> Source:
    """Parameters of a run, averaged and rounded.

    Args:
      workdir: run directory.
      step: last checkpoint to use; 0 = the latest.
      average: number of checkpoints up to it whose parameters are averaged with equal weights (in float64).
      dtype: stored precision, a key of `tensors.DTYPES`.

    Raises:
      ConfigError: `average` or `dtype` has a bad value.
      CheckpointError: as `load_run`, or fewer than `average` checkpoints.
    """
    if average < 1:
        raise ConfigError(f"--average={average}: must be at least 1")
    run = load_run(workdir, step)
    with Checkpointer(workdir) as checkpointer:
        kept = [s for s in checkpointer.steps() if s <= run.step]
        steps = tuple(kept[-average:])
        if len(steps) < average:
            raise CheckpointError(
                f"{workdir} keeps {len(kept)} checkpoints up to step {run.step}, --average={average} needs as many: "
                "lower it, or train with a larger config.checkpoint.keep"
            )
        params: Any = jax.tree.map(np.asarray, run.params)
        if average > 1:
            total = jax.tree.map(lambda x: x.astype(np.float64), params)
            for other in steps[:-1]:
                restored = checkpointer.restore(other, run.definition.abstract_params).params
                total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, restored)
            params = jax.tree.map(lambda x: (x / average).astype(np.float32), total)
    leaves, structure = jax.tree.flatten_with_path(params)
    rounded = [
        tensors.cast(x, dtype, jax.tree_util.keystr(path, simple=True, separator="/")).astype(np.float32)
        for path, x in leaves
    ]
    params = jax.tree.unflatten(structure, rounded)
    run = dataclasses.replace(run, params=params, model=run.definition.merge(params))
    return Source(run, params, steps, dtype)


def default_out(workdir: epath.PathLike, source: Source, form: str) -> pathlib.Path:
    """WORKDIR/export/FORM-STEP."""
    return pathlib.Path(workdir) / "export" / f"{form}-{source.steps[-1]}"

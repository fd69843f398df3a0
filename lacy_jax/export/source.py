"""The parameters to export: those of one checkpoint, the mean of the last ones, or the average that training kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath

from lacy_jax.config import get_default_config
from lacy_jax.errors import CheckpointError, ConfigError
from lacy_jax.export import tensors
from lacy_jax.training import sharding
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.optimizer import averaged
from lacy_jax.training.run import Run, load_run
from lacy_jax.training.state import ModelDefinition, abstract_state, optimizer_for

EMA = "ema"
"""The value of `--average` for the moving average that training kept."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A run and the parameters taken from it.

    Attributes:
      run: as returned by `load_run`, but with `params` (below) instead of its own.
      params: nested dict of float32 numpy arrays, already rounded to the stored precision.
      steps: checkpoints that were averaged, ascending; only one if `ema` is set.
      ema: decay, if they are an exponential moving average; else 0.
      dtype: the stored precision.
      call: whether CALL is exported; without it the export is a plain language model with the softmax p_\\CALL.
      left_out: parts of the model that are not in it (`without_query_head`).
    """

    run: Run
    params: Any
    steps: tuple[int, ...]
    dtype: str
    ema: float = 0.0
    call: bool = True
    left_out: tuple[str, ...] = ()


def load_source(workdir: epath.PathLike, step: int = 0, average: str = "1", dtype: str = "float32") -> Source:
    """Parameters of a run, averaged and rounded.

    Args:
      workdir: run directory.
      step: last checkpoint to use; 0 = the latest.
      average: "K" averages the parameters of the last K checkpoints up to that step with equal weights (in float64);
        "ema" is the exponential moving average that the checkpoint holds.
      dtype: stored precision, a key of `tensors.DTYPES`.

    Raises:
      ConfigError: `average` or `dtype` has a bad value, or the run keeps no moving average.
      CheckpointError: as `load_run`, or fewer than K checkpoints.
    """
    if average != EMA and not (average.isdecimal() and int(average)):
        raise ConfigError(f"--average={average}: must be a number of checkpoints, at least 1, or {EMA}")
    run = load_run(workdir, step)
    steps: tuple[int, ...]
    with Checkpointer(workdir) as checkpointer:
        if average == EMA:
            steps, params = (run.step,), _moving_average(run, checkpointer)
        else:
            steps, params = _mean(run, checkpointer, int(average))
    leaves, structure = jax.tree.flatten_with_path(params)
    rounded = [
        tensors.cast(x, dtype, jax.tree_util.keystr(path, simple=True, separator="/")).astype(np.float32)
        for path, x in leaves
    ]
    params = jax.tree.unflatten(structure, rounded)
    decay = run.config.optimizer.ema_decay if average == EMA else 0.0
    run = dataclasses.replace(run, params=params, model=run.definition.merge(params))
    return Source(run, params, steps, dtype, decay)


def without_query_head(source: Source) -> Source:
    """The same model for a format that has no place for a query head; `left_out` says so."""
    run = source.run
    if not run.model_config.query_dim:
        return source
    definition = ModelDefinition(dataclasses.replace(run.model_config, query_dim=0))
    params = {name: value for name, value in source.params.items() if name in definition.abstract_params}
    run = dataclasses.replace(run, definition=definition, params=params, model=definition.merge(params))
    return dataclasses.replace(source, run=run, params=params, left_out=("query head",))


def _mean(run: Run, checkpointer: Checkpointer, count: int) -> tuple[tuple[int, ...], Any]:
    """(steps, mean) of the last `count` checkpoints up to the run's."""
    kept = [s for s in checkpointer.steps() if s <= run.step]
    steps = tuple(kept[-count:])
    if len(steps) < count:
        raise CheckpointError(
            f"{run.workdir} keeps {len(kept)} checkpoints up to step {run.step}, --average={count} needs as many: "
            "lower it, or train with a larger config.checkpoint.keep"
        )
    params: Any = jax.tree.map(np.asarray, run.params)
    if count == 1:
        return steps, params
    total = jax.tree.map(lambda x: x.astype(np.float64), params)
    for other in steps[:-1]:
        restored = checkpointer.restore(other, run.definition.abstract_params).params
        total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, restored)
    return steps, jax.tree.map(lambda x: (x / count).astype(np.float32), total)


def _moving_average(run: Run, checkpointer: Checkpointer) -> Any:
    """The average in the optimiser state of the run's checkpoint."""
    decay = run.config.optimizer.ema_decay
    if not decay:
        raise ConfigError(
            f"--average={EMA}: {run.workdir} keeps no moving average; train with config.optimizer.ema_decay, such as 0.999"
        )
    tx = optimizer_for(run.config, run.definition)
    mesh = sharding.make_mesh(get_default_config().mesh, jax.local_devices()[:1])
    wanted = abstract_state(run.definition, tx, mesh)
    restored = checkpointer.restore(run.step, wanted.params, wanted.optimizer_items())
    params = averaged(restored.optimizer["opt_state"], decay)
    if params is None:
        raise CheckpointError(f"checkpoint {run.step} of {run.workdir}: no update has been averaged yet")
    return jax.tree.map(np.asarray, run.definition.trained.join(restored.params, params))

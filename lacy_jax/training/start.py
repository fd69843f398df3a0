"""Where a session starts: from the newest good checkpoint, in memory or on storage, or from a fresh state."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax

from lacy_jax import config as config_lib
from lacy_jax.errors import CheckpointError
from lacy_jax.training.checkpoint import Checkpointer, Restored
from lacy_jax.training.ram_checkpoint import RamCheckpointer
from lacy_jax.training.run import load_initial
from lacy_jax.training.run_setup import RunSetup
from lacy_jax.training.state import TrainState, init_state


def restore(
    run: RunSetup, checkpointer: Checkpointer, ram: RamCheckpointer | None
) -> tuple[int, TrainState | None, dict[str, Any]]:
    """(step, state, meta) of the latest good checkpoint, at which the input is set; (0, None, {}) in a fresh workdir.

    Raises:
      CheckpointError: the checkpoints belong to another run, or are all damaged.
    """
    steps = checkpointer.steps()
    if steps:
        defaults = {"config": config_lib.training_fields(config_lib.get_default_config())}
        checkpointer.refuse_other_run(run.identity, defaults)
    restored = _from_memory(run, ram, steps[-1] if steps else 0)
    if restored is None:
        if not steps:
            return 0, None, {}
        restored = checkpointer.restore_latest(run.abstract.params, run.abstract.optimizer_items())
        assert restored is not None
        if restored.step < steps[-1]:
            checkpointer.set_aside_after(restored.step)
    run.pipeline.set_state(restored.meta["pipeline"])
    print(f"resuming from step {restored.step}", file=sys.stderr, flush=True)
    return restored.step, TrainState(params=restored.params, **restored.optimizer), restored.meta


def _from_memory(run: RunSetup, ram: RamCheckpointer | None, after: int) -> Restored | None:
    """The newest good checkpoint in memory after step `after`, if there is one."""
    for step in reversed(ram.steps() if ram is not None else []):
        if step <= after:
            break
        assert ram is not None
        try:
            found = ram.restore(step, run.abstract.params, run.abstract.optimizer_items(), run.identity)
            print(f"step {step} comes from the memory of the hosts", file=sys.stderr, flush=True)
            return found
        except CheckpointError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
    return None


def fresh_state(run: RunSetup) -> TrainState:
    """The state of a run that has no checkpoint."""
    config = run.config
    state = init_state(run.model, run.optimizer, run.mesh, config.seed, config.train.shard_optimizer)
    if config.train.init_from:
        params = load_initial(config, run.model.config, run.tokenizer.hash, run.mesh)
        state = dataclasses.replace(state, params=jax.device_put(params, run.shardings.params))
    elif not run.model.trained.everything:
        why = "config.train.init_from is empty"
        print(f"note: parameters that config.train.trainable leaves out stay random: {why}", file=sys.stderr)
    return state

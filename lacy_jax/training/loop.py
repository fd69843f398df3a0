"""The training loop. Read it from top to bottom: it is the whole run.

Guarantees:
  - a run that is killed and started again is, bit for bit, the run that was not killed (same devices, same versions):
    parameters, optimiser state, data order and metrics, except for timings (on GPUs with
    XLA_FLAGS=--xla_gpu_deterministic_ops=true, because some of their kernels sum in varying order);
  - no step with a loss or gradient that is not finite ever changes the saved state;
  - a checkpoint is written after its step's metrics have been read and found good, and holds the state of the input
    pipeline after exactly that step;
  - with `train.on_spike` = "rewind", a loss spike makes the run go back to the last checkpoint, which is from before it,
    and go on with the data after the spike's batch; this depends only on the losses, so a run that is killed and resumed
    decides the same;
  - within a step, only the batch moves to the devices, and only the metrics move back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax.errors import PeerLostError, TrainingError
from lacy_jax.training import sharding
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.environment import describe_environment
from lacy_jax.training.metrics_files import last_metrics
from lacy_jax.training.ram_checkpoint import RamCheckpointer
from lacy_jax.training.run_setup import RunSetup, set_up
from lacy_jax.training.signals import StopRequest
from lacy_jax.training.start import fresh_state, restore
from lacy_jax.training.state import TrainState
from lacy_jax.training.step import TrainStep, make_train_step, refused_options
from lacy_jax.training.validation import Evaluator
from lacy_jax.training.watcher import Rewind, Watcher

_STATUS = re.compile(r"[A-Z_]+: ")
"""How messages of the runtime begin: "UNKNOWN: Gloo AllGather failed"."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
      workdir: run directory.
      step: steps done in all sessions.
      steps: steps that the config asks for.
      interrupted: stopped by a signal; the same call goes on from `step`.
      train, valid: the last metrics logged, by name; empty if there are none.
    """

    workdir: str
    step: int
    steps: int
    interrupted: bool
    train: dict[str, float]
    valid: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON-safe dict."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """One or two lines for people."""
        if self.interrupted:
            return f"resumable: {self.workdir} saved at step {self.step} of {self.steps}; run the same command to go on"
        parts = [f"step {self.step} of {self.steps}"]
        parts += [f"train loss {self.train['loss']:.4f}"] if self.train.get("loss") is not None else []
        parts += [f"valid nll {self.valid['nll']:.4f}"] if self.valid.get("nll") is not None else []
        return f"{self.workdir}: {', '.join(parts)}"


def train(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, devices: Sequence[jax.Device] | None = None
) -> TrainResult:
    """Train the run in `workdir`, or go on training it.

    Args:
      config: a full run config; `dataset.path` empty means WORKDIR/dataset.
      workdir: run directory; created if it does not exist. If it holds checkpoints, the run resumes from the latest.
      devices: devices to train on; None = all.

    Raises:
      ConfigError: fields contradict each other, the data or the devices.
      DataError: the dataset is missing, empty, damaged, made with another tokenizer, or lacks labels that the policy reads.
      CheckpointError: the workdir belongs to another config, dataset or reference model, its checkpoints are damaged, or
        a checkpoint cannot be written.
      PeerLostError: with several processes, an exchange failed because another process is gone.
      TrainingError: the loss is not finite, spikes more often than `train.max_rewinds`, or memory is exhausted.
    """
    rewind: Rewind | None = None
    made: list[tuple[TrainStep, Evaluator]] = []
    with StopRequest() as stop:
        while True:
            ended = _session(config, epath.Path(workdir), devices, stop, rewind, made)
            if isinstance(ended, TrainResult):
                return ended
            rewind = ended


def _session(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    devices: Sequence[jax.Device] | None,
    stop: StopRequest,
    rewind: Rewind | None,
    made: list[tuple[TrainStep, Evaluator]],
) -> TrainResult | Rewind:
    """Train until the end, a stop, or a spike to rewind from; `rewind` is the one that this session starts with, if any. `made`: see
    `_programs`."""
    watch = Watcher(config, workdir)
    # ---- 1. Data, model, optimiser, devices. All checks are made here. ----
    run = set_up(config, workdir, devices)
    with (
        contextlib.closing(run.pipeline),
        Checkpointer(workdir, config) as checkpointer,
        watch,
        _in_plain_words(config, checkpointer, watch),
        contextlib.ExitStack() as closing,
    ):
        # ---- 2. State: from the latest good checkpoint, or fresh. -----------------------------------------------------
        ram = RamCheckpointer(config, workdir, run.mesh) if config.checkpoint.ram else None
        if ram is not None:
            closing.callback(ram.close)
        start, state, meta = restore(run, checkpointer, ram)
        if start >= config.train.steps:
            return TrainResult(str(workdir), start, config.train.steps, False, **last_metrics(workdir))
        if state is None:
            state = fresh_state(run)
        # ---- 3. Monitoring, and the run's record. -----------------------------------------------------------------------
        flops = run.model.trained.flops_per_token(config.input.seq_len)
        peak = watch.begin(start, meta, rewind, checkpointer, flops, run.mesh.size)
        if rewind is not None:
            run.pipeline.set_state(rewind.data)
        if jax.process_index() == 0:
            watch.side.submit(
                "the record", functools.partial(run.write_record, workdir, describe_environment(start))
            )
            print(f"{run.describe()}; peak {peak}", file=sys.stderr)
        # ---- 4. Steps, until the end or a stop. ---------------------------------------------------------------------------
        return _steps(workdir, run, _programs(run, made), state, watch, checkpointer, ram, stop)


def _programs(run: RunSetup, made: list[tuple[TrainStep, Evaluator]]) -> tuple[TrainStep, Evaluator]:
    """The step and the validation; `made` keeps them for the sessions that follow, of the same config on the same devices.

    So a rewind compiles nothing.
    """
    if not made:
        reference = run.reference.definition if run.reference is not None else None
        step = make_train_step(run.config, run.model, run.optimizer, run.mesh, run.shardings, reference)
        made.append((step, Evaluator(run.config, run.model, run.mesh, reference)))
    return made[0]


def _steps(
    workdir: epath.Path,
    run: RunSetup,
    programs: tuple[TrainStep, Evaluator],
    state: TrainState,
    watch: Watcher,
    checkpointer: Checkpointer,
    ram: RamCheckpointer | None,
    stop: StopRequest,
) -> TrainResult | Rewind:
    config, pipeline = run.config, run.pipeline
    train_step, evaluator = programs
    reference_params = run.reference.params if run.reference is not None else None
    step = evaluated = watch.step
    last = stopping = False
    with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"), watch.stepping():
        while not (last or stopping):
            batch = watch.next_batch(pipeline)
            if batch is not None:
                step += 1
                with watch.dispatching(step):
                    on_devices = sharding.put_batch(batch, run.mesh)
                    state, metrics = train_step(state, on_devices, reference_params)
                # The step just dispatched runs while the metrics of the previous one are read.
                if rewind := watch.dispatched(step, metrics, pipeline.get_state()):
                    return rewind
            else:
                epochs = f"config.input.epochs = {config.input.epochs}"
                print(f"input used up after step {step} ({epochs})", file=sys.stderr)
            last = step == config.train.steps or batch is None
            stopping = stop.reached(step)
            due = config.train.eval_every and step % config.train.eval_every == 0
            evaluate = (last or due) and step > evaluated and bool(run.valid_batches)
            save = last or stopping or step % config.checkpoint.every == 0
            remember = ram is not None and not save and step % config.checkpoint.ram_every == 0
            if not (evaluate or save or remember):
                continue
            if rewind := watch.catch_up():  # Evaluate and save only when this step is known to be good.
                return rewind
            valid: dict[str, float] = {}
            if evaluate:
                evaluated = step
                with watch.during(step, "evaluating"):
                    valid = evaluator.evaluate(state.params, run.valid_batches, reference_params)
                watch.validated(step, valid)
            meta = {**run.identity, "pipeline": pipeline.get_state(), **watch.record()}
            if remember and ram is not None:
                with watch.saving(step):
                    ram.save(step, state.params, state.optimizer_items(), meta)
            if save:
                with watch.saving(step):
                    checkpointer.save(step, state.params, state.optimizer_items(), meta, valid.get("nll"))
    with watch.during(step, "saving"):
        checkpointer.wait()
    result = TrainResult(str(workdir), step, config.train.steps, stopping and not last, **watch.last_metrics)
    watch.ended(step, "stopped" if result.interrupted else "finished")
    if result.interrupted:
        print(result.summary(), file=sys.stderr, flush=True)
    return result


@contextlib.contextmanager
def _in_plain_words(
    config: ml_collections.ConfigDict, checkpointer: Checkpointer, watch: Watcher
) -> Iterator[None]:
    """Turn the runtime's long errors about memory or connections into one line that says what to do."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and not _STATUS.match(
            str(error)
        ):  # Where an array is fetched, a failed exchange is a ValueError.
            raise
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TrainingError(
                f"out of device memory: raise config.train.accumulation (now {config.train.accumulation}), set "
                f"config.model.remat = 'full', or lower config.input.batch_size (now {config.input.batch_size})"
            ) from error
        if refused := refused_options(config, error):
            raise refused from error
        if jax.process_count() == 1:
            raise
        raise PeerLostError(
            f"process {jax.process_index()} of {jax.process_count()} lost contact with the others after step {max(watch.step - 1, 0)}: "
            f"{str(error).splitlines()[0][:200]}; {checkpointer.describe_last()}: start all processes again to go on"
        ) from error

"""The training loop. Read it from top to bottom: it is the whole run.

What is guaranteed:
  - a run that is killed and started again is, bit for bit, the run that was not (same devices, same versions):
    parameters, optimiser state, data order and metrics, apart from timings (on GPUs under
    XLA_FLAGS=--xla_gpu_deterministic_ops=true, since some of their kernels add up in any order);
  - the state that is saved was never touched by a step whose loss or gradient was not finite;
  - a checkpoint is written after its step's metrics have been read and found good, and holds the state of the input
    pipeline after exactly that step;
  - a loss spike with `train.on_spike` = "rewind" goes back to the last checkpoint, which is from before it, while the data go
    on after the spike's batch: a decision made from the losses alone, hence made again by a run that is killed and resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.dataset import Batch, InputPipeline, make_input, read_metadata
from lacy_jax.dataset.metadata import Metadata
from lacy_jax.errors import DataError, PeerLostError, TrainingError
from lacy_jax.models import count_params, flops_per_token, resolve_model_config
from lacy_jax.objectives import POLICIES
from lacy_jax.run_files import CONFIG_FILE, DATASET_METADATA_FILE, TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import sharding
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.environment import record_environment
from lacy_jax.training.goodput import Goodput
from lacy_jax.training.health import Health, LossSpike
from lacy_jax.training.metrics import MetricsWriter, read_metrics
from lacy_jax.training.monitor import Monitor
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.profiling import Profiler
from lacy_jax.training.run import load_initial, load_reference
from lacy_jax.training.signals import StopRequest
from lacy_jax.training.state import ModelDefinition, TrainState, abstract_state, init_state, state_shardings
from lacy_jax.training.step import make_train_step
from lacy_jax.training.throughput import ThroughputMeter, peak_flops
from lacy_jax.training.validation import Evaluator


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
      workdir: run directory.
      step: steps done, all sessions together; `steps` were asked for.
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
        """JSON-safe."""
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
    """Train, or go on training, the run in `workdir`.

    Args:
      config: a full run config; `dataset.path` empty means WORKDIR/dataset.
      workdir: run directory; created if it does not exist. If it holds checkpoints, the run resumes from the latest.
      devices: to train on; None = all.

    Raises:
      ConfigError: fields that contradict each other, the data or the devices.
      DataError: the dataset is missing, empty, damaged, or made with another tokenizer.
      CheckpointError: the workdir belongs to another config or dataset, its checkpoints are damaged, or a checkpoint
        cannot be written.
      PeerLostError: with several processes, an exchange with another failed: it has gone.
      TrainingError: the loss is not finite, spikes more often than `train.max_rewinds`, or memory is exhausted.
    """
    spike: LossSpike | None = None
    while True:
        try:
            return _session(config, workdir, devices, spike)
        except LossSpike as found:
            spike = found


def _session(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    devices: Sequence[jax.Device] | None,
    spike: LossSpike | None,
) -> TrainResult:
    """`train` until the end, a pause, or a spike to go back from; `spike`: the one that this session begins after."""
    goodput = Goodput()
    workdir = epath.Path(workdir)
    config = _resolve(config, workdir)

    # ---- 1. What the run is: data, model, optimiser, devices. Everything that can be refused is refused here. ----
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch_shape(config, mesh)
    tokenizer, metadata = _tokenizer_and_metadata(config)
    model = ModelDefinition(resolve_model_config(config.model, tokenizer.vocab_size, config.input.seq_len))
    tx = make_optimizer(config, model.axes)
    shardings = state_shardings(model, tx, mesh)
    share, shares = sharding.row_share(mesh)
    hosts: dict[str, Any] = {"process_index": share, "process_count": shares}
    pipeline = make_input(config, tokenizer_hash=tokenizer.hash, **hosts)
    valid_batches = _validation_batches(config, metadata, tokenizer.hash, hosts)
    _check_policy(config, pipeline)
    reference = load_reference(config, tokenizer.hash, mesh)
    reference_model = reference.definition if reference is not None else None
    reference_params = reference.params if reference is not None else None
    identity = {"config": config_lib.training_fields(config), "data": {"tokenizer": tokenizer.hash}}

    with (
        Checkpointer(workdir, config) as checkpointer,
        StopRequest() as stop,
        Health(config, workdir, goodput) as health,
        Profiler(config, workdir) as profiler,
    ):
        # ---- 2. State: the latest good checkpoint, or a fresh one. ------------------------------------------------
        start, state, meta = _restore(checkpointer, identity, abstract_state(model, tx, mesh), pipeline)
        totals = dict(meta.get("totals", {}))
        health.usual_losses(meta.get("losses", []))
        if state is None:
            state = init_state(model, tx, mesh, config.seed)
            if config.train.init_from:
                params = load_initial(config, model.config, tokenizer.hash, mesh)
                state = dataclasses.replace(state, params=params)
        if start >= config.train.steps:
            pipeline.close()
            return _result(workdir, config, start, interrupted=False)
        health.begin(start)
        if spike is not None:
            pipeline.set_state(spike.data)
            totals["rewinds"] = spike.rewinds
            if spike.rewinds > config.train.max_rewinds:
                raise TrainingError(
                    f"{spike}; the run went back {config.train.max_rewinds} times before (config.train.max_rewinds); "
                    f"{checkpointer.describe_last()}; lower config.optimizer.learning_rate, or look at the data"
                )
            health.rewound(spike, start)
        if jax.process_index() == 0:
            _write_record(workdir, config, tokenizer, metadata, start)

        # ---- 3. What watches the run. -------------------------------------------------------------------------------
        writer = MetricsWriter(workdir, config, resume_step=start)
        peak, peak_source = peak_flops(config.metrics.peak_flops)
        again = (lambda: peak_flops()[0] * mesh.size) if peak_source == "measured" else None
        meter = ThroughputMeter(flops_per_token(model.config, config.input.seq_len), peak * mesh.size, again)
        evaluator = Evaluator(config, model, mesh, reference_model)
        train_step = make_train_step(config, model, tx, mesh, shardings, reference_model)
        monitor = Monitor(config, writer, meter, checkpointer, health, totals, start)
        if jax.process_index() == 0:
            print(
                f"{_describe(model, mesh)}; peak {peak / 1e12:.3g} TFLOP/s per device ({peak_source})",
                file=sys.stderr,
            )

        # ---- 4. Steps. --------------------------------------------------------------------------------------------------
        step = evaluated = start
        last = stopping = False
        positions: dict[
            int, Any
        ] = {}  # State of the input after this step and the one before, which is read behind it.
        goodput.started()
        try:
            with jax.set_mesh(mesh), monitor:
                for step in range(start + 1, config.train.steps + 1):
                    with meter.waiting_for_input(), goodput.phase("input"):
                        batch = next(pipeline, None)
                    health.bad_records = pipeline.bad_records
                    positions = {step: pipeline.get_state(), step - 1: positions.get(step - 1)}
                    if batch is None:
                        step -= 1
                        print(
                            f"input used up after step {step} (config.input.epochs = {config.input.epochs})",
                            file=sys.stderr,
                        )
                    else:
                        profiler.before(step)
                        compiling = (
                            goodput.phase("compile") if step == start + 1 else contextlib.nullcontext()
                        )
                        with compiling:
                            on_devices = sharding.put_batch(batch, mesh)
                            state, metrics = train_step(state, on_devices, reference_params)
                        # The step just dispatched runs while the metrics of the one before are read.
                        monitor.dispatched(step, metrics)
                        health.dispatched(step)
                        if profiler.ends_with(step):
                            monitor.catch_up()
                            profiler.stop()

                    stopping = stop.reached(step)
                    last = step == config.train.steps or batch is None
                    due = config.train.eval_every and step % config.train.eval_every == 0
                    evaluate = (last or due) and step > evaluated and bool(valid_batches)
                    save = last or stopping or step % config.checkpoint.every == 0
                    if evaluate or save:
                        monitor.catch_up()  # Nothing is judged or kept before this step is known to be good.
                        with meter.outside():
                            valid: dict[str, float] = {}
                            if evaluate:
                                evaluated = step
                                health.state(step, "evaluating")
                                with goodput.phase("evaluation"):
                                    valid = evaluator.evaluate(state.params, valid_batches, reference_params)
                                writer.write(step, "valid", valid)
                            if save:
                                meta = {
                                    **identity,
                                    "pipeline": pipeline.get_state(),
                                    "totals": monitor.totals,
                                    "losses": health.losses,
                                }
                                health.state(step, "saving")
                                with goodput.phase("checkpoint"):
                                    checkpointer.save(
                                        step, state.params, state.optimizer_items(), meta, valid.get("nll")
                                    )
                    if stopping or batch is None:
                        break
            with goodput.phase("checkpoint"):
                checkpointer.wait()
        except LossSpike as found:
            found.data, found.rewinds = positions[found.step], monitor.totals["rewinds"] + 1
            raise
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                if jax.process_count() == 1:
                    raise
                raise PeerLostError(
                    f"process {jax.process_index()} of {jax.process_count()} lost contact with the others after step {step - 1}: "
                    f"{str(error).splitlines()[0][:200]}; {checkpointer.describe_last()}: start all processes again to go on"
                ) from error
            raise TrainingError(
                f"out of device memory: raise config.train.accumulation (now {config.train.accumulation}), set "
                f"config.model.remat = 'full', or lower config.input.batch_size (now {config.input.batch_size})"
            ) from error
        finally:
            pipeline.close()
            writer.close()

        # ---- 5. The end, or a pause. ----------------------------------------------------------------------------------------
        result = _result(workdir, config, step, interrupted=stopping and not last)
        health.state(step, "stopped" if result.interrupted else "finished")
        if result.interrupted:
            print(result.summary(), file=sys.stderr, flush=True)
        return result


def _resolve(config: ml_collections.ConfigDict, workdir: epath.Path) -> ml_collections.ConfigDict:
    """A validated copy with the dataset's place filled in."""
    config_lib.validate(config)
    given = config.dataset.path or config.dataset.mixture
    return config_lib.changed(
        config, {} if given else {"dataset.path": str(config_lib.dataset_folder(config, workdir))}
    )


def _tokenizer_and_metadata(config: ml_collections.ConfigDict) -> tuple[Tokenizer, Metadata]:
    """The tokenizer that the (first) dataset carries, checked against `tokenizer.path` if one is named."""
    path = epath.Path(config.dataset.mixture[0][0] if config.dataset.mixture else config.dataset.path)
    metadata = read_metadata(path)
    tokenizer = Tokenizer.load(path / TOKENIZER_FILE)
    if tokenizer.hash != metadata.tokenizer_hash:
        raise DataError(
            f"dataset {path}: its {TOKENIZER_FILE} is {tokenizer.hash}, its metadata says {metadata.tokenizer_hash}; "
            "restore the file or prepare the dataset again"
        )
    if config.tokenizer.path:
        wanted = Tokenizer.load(config.tokenizer.path)
        if wanted.hash != metadata.tokenizer_hash:
            raise DataError(
                f"dataset {path} was made with tokenizer {metadata.tokenizer_hash}, but config.tokenizer.path = "
                f"{config.tokenizer.path} is {wanted.hash}; prepare the dataset with it or change the field"
            )
    return tokenizer, metadata


def _validation_batches(
    config: ml_collections.ConfigDict, metadata: Metadata, tokenizer_hash: str, hosts: dict[str, int]
) -> list[Batch]:
    """The first `train.eval_batches` batches of the validation split, the same each time; [] if there is none."""
    if config.dataset.mixture and not config.dataset.path:
        print(
            "note: no validation: a mixture validates on the dataset of config.dataset.path, which is empty",
            file=sys.stderr,
        )
        return []
    if config.dataset.path and not config.dataset.mixture and not metadata.splits["valid"].documents:
        print(f"note: no validation: dataset {config.dataset.path} has no validation split", file=sys.stderr)
        return []
    if config.train.eval_batches < 1:
        return []
    pipeline = make_input(
        config, split="valid", epochs=1, tokenizer_hash=tokenizer_hash, drop_remainder=False, **hosts
    )
    batches = list(itertools.islice(pipeline, config.train.eval_batches))
    pipeline.close()
    return batches


def _check_policy(config: ml_collections.ConfigDict, pipeline: InputPipeline) -> None:
    """The data must have the labels that the policy reads; better said now than from inside a compiled step."""
    needs = POLICIES[config.objective.policy].needs
    wanted = {"judge"} & set(needs)
    if "reference_nll" in needs and config.objective.reference == "dataset":
        wanted.add("reference_nll")
    missing = sorted(wanted - set(pipeline.extras))
    if missing:
        raise DataError(
            f"config.objective.policy = {config.objective.policy!r} reads {', '.join(missing)}, which the dataset does not "
            "hold; add it with lacy_jax.dataset.write_extra"
        )


def _restore(
    checkpointer: Checkpointer, identity: dict[str, Any], abstract: TrainState, pipeline: InputPipeline
) -> tuple[int, TrainState | None, dict[str, Any]]:
    """(step, state, meta) of the latest good checkpoint; (0, None, {}) in a fresh workdir.

    Raises:
      CheckpointError: the checkpoints belong to another config or dataset, or are all damaged.
    """
    steps = checkpointer.steps()
    if not steps:
        return 0, None, {}
    defaults = {"config": config_lib.training_fields(config_lib.get_default_config())}
    checkpointer.refuse_other_run(identity, defaults)
    restored = checkpointer.restore_latest(abstract.params, abstract.optimizer_items())
    assert restored is not None
    pipeline.set_state(restored.meta["pipeline"])
    if restored.step < steps[-1]:
        checkpointer.set_aside_after(restored.step)
    state = TrainState(params=restored.params, **restored.optimizer)
    print(f"resuming from step {restored.step}", file=sys.stderr, flush=True)
    return restored.step, state, restored.meta


def _write_record(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    tokenizer: Tokenizer,
    metadata: Metadata,
    start: int,
) -> None:
    """What the run directory says of itself: config, tokenizer, the dataset's metadata, environment."""
    files.write_text(workdir / CONFIG_FILE, config_lib.to_json(config))
    tokenizer.save(workdir / TOKENIZER_FILE)
    files.write_json(workdir / DATASET_METADATA_FILE, dataclasses.asdict(metadata))
    record_environment(workdir, start)


def _describe(model: ModelDefinition, mesh: Mesh) -> str:
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{count_params(model.config) / 1e6:.2f} M parameters on {mesh.size} {jax.devices()[0].device_kind} devices ({shape})"


def _result(
    workdir: epath.Path, config: ml_collections.ConfigDict, step: int, interrupted: bool
) -> TrainResult:
    last: dict[str, dict[str, float]] = {"train": {}, "valid": {}}
    for line in read_metrics(workdir):
        last[line["split"]] = {name: value for name, value in line.items() if name not in ("step", "split")}
    return TrainResult(str(workdir), step, config.train.steps, interrupted, last["train"], last["valid"])

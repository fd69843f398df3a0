"""Setting up a run before its first step: data, model, optimiser, devices, and all checks.

The checks include what validation, evaluation, generation and saving will need, not only what the first step needs: a run
must not fail at its first validation, hours later, because the validation split lacks a label.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import optax
from etils import epath
from jax.sharding import Mesh

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.dataset import Batch, InputPipeline, make_input, read_metadata
from lacy_jax.dataset.extras import fingerprint_of
from lacy_jax.dataset.metadata import Metadata
from lacy_jax.dataset.query_links import QUERY_ENTRY
from lacy_jax.dataset.records import STORED_LABELS
from lacy_jax.errors import CheckpointError, ConfigError, DataError
from lacy_jax.models import count_params, resolve_model_config
from lacy_jax.objectives import POLICIES
from lacy_jax.run_files import CHECKPOINTS_FOLDER, CONFIG_FILE, DATASET_METADATA_FILE, TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import sharding
from lacy_jax.training.environment import record_environment
from lacy_jax.training.quantization import check_quantization
from lacy_jax.training.reference import EXTRA, load_reference
from lacy_jax.training.run import Run
from lacy_jax.training.state import (
    ModelDefinition,
    TrainState,
    abstract_state,
    optimizer_for,
    state_shardings,
)


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """A run that is ready to start.

    Attributes:
      config: the validated config, with the dataset's path filled in.
      mesh: the devices.
      tokenizer, metadata: those of the (first) dataset.
      model: the model's definition.
      optimizer: the optax optimiser.
      shardings: shardings of the state.
      abstract: shapes, dtypes and shardings of the state.
      pipeline: the input pipeline of the training batches.
      valid_batches: this process's rows of the validation batches, the same each time; empty if there are none.
      reference: the frozen model that ranks the targets, if the policy needs one.
      identity: groups of JSON-safe fields that must be the same in a checkpoint.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    tokenizer: Tokenizer
    metadata: Metadata
    model: ModelDefinition
    optimizer: optax.GradientTransformation
    shardings: Any
    abstract: TrainState
    pipeline: InputPipeline
    valid_batches: list[Batch]
    reference: Run | None
    identity: dict[str, dict[str, Any]]

    def describe(self) -> str:
        """One line for people."""
        shape = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        trained, all_of_them = self.model.trained, count_params(self.model.config)
        some = "" if trained.everything else f"{trained.count:,} of "
        count = f"{all_of_them:,}" if some else f"{all_of_them / 1e6:.2f} M"
        return (
            f"{some}{count} parameters{' trained' if some else ''} on {self.mesh.size} {jax.devices()[0].device_kind} devices "
            f"({shape})"
        )

    def write_record(self, workdir: epath.Path, environment: dict[str, Any]) -> None:
        """Write config, tokenizer, the dataset's metadata and this session's environment to the run directory."""
        files.write_text(workdir / CONFIG_FILE, config_lib.to_json(self.config))
        self.tokenizer.save(workdir / TOKENIZER_FILE)
        files.write_json(workdir / DATASET_METADATA_FILE, dataclasses.asdict(self.metadata))
        record_environment(workdir, environment)


def set_up(
    config: ml_collections.ConfigDict, workdir: epath.Path, devices: Sequence[jax.Device] | None
) -> RunSetup:
    """Open and check everything that the run in `workdir` needs, without writing anything.

    Raises:
      ConfigError: fields contradict each other, the data or the devices.
      DataError: the dataset is missing, empty, damaged, made with another tokenizer, or lacks labels that the policy reads.
      CheckpointError: the reference model is missing, or the disk has no space for a checkpoint.
    """
    config_lib.validate(config)
    if not config.dataset.mixture:
        config = config_lib.reading_one_dataset(config, workdir)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch_shape(config, mesh)
    check_quantization(config.train.quantization, mesh.devices.flat[0].device_kind)
    tokenizer, metadata = _tokenizer_and_metadata(config)
    dimensions = resolve_model_config(config.model, tokenizer.vocab_size, config.input.seq_len)
    model = ModelDefinition(dimensions, config.train.trainable)
    optimizer = optimizer_for(config, model)
    over_data = config.train.shard_optimizer
    abstract = abstract_state(model, optimizer, mesh, over_data)
    _check_room(workdir, abstract)
    share, shares = sharding.row_share(mesh)
    hosts: dict[str, Any] = {
        "process_index": share,
        "process_count": shares,
        "tokenizer_hash": tokenizer.hash,
    }
    pipeline = make_input(config, **hosts)
    check_labels(config, pipeline)
    _check_nongrammatical(config, pipeline)
    valid_batches = _validation_batches(config, hosts)
    reference = load_reference(config, tokenizer.hash, mesh)
    return RunSetup(
        config=config,
        mesh=mesh,
        tokenizer=tokenizer,
        metadata=metadata,
        model=model,
        optimizer=optimizer,
        shardings=state_shardings(model, optimizer, mesh, over_data),
        abstract=abstract,
        pipeline=pipeline,
        valid_batches=valid_batches,
        reference=reference,
        identity=_identity(config, tokenizer, pipeline, reference),
    )


# -- data ----------------------------------------------------------------------------------------------------------


def _tokenizer_and_metadata(config: ml_collections.ConfigDict) -> tuple[Tokenizer, Metadata]:
    """The (first) dataset's tokenizer, checked against `tokenizer.path` if that is set, and its metadata."""
    mixture = config_lib.mixture_of(config)
    path = epath.Path(mixture[0][0] if mixture else config.dataset.path)
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


def _validation_batches(config: ml_collections.ConfigDict, hosts: dict[str, Any]) -> list[Batch]:
    """The first `train.eval_batches` batches of the validation split; [] with a note if there is none."""
    path = config.dataset.path
    why = ""
    if not path:
        why = "a mixture validates on the dataset of config.dataset.path, which is empty"
    elif not read_metadata(path).splits["valid"].documents:
        why = f"dataset {path} has no validation split"
    if why:
        if config.generate.gate == "calibrated":
            raise ConfigError(
                f"config.generate.gate = 'calibrated' is fitted on validation text, of which there is none: {why}"
            )
        print(f"note: no validation: {why}", file=sys.stderr)
        return []
    pipeline = make_input(config, split="valid", epochs=1, drop_remainder=False, **hosts)
    try:
        check_labels(config, pipeline)  # `lacy evaluate` reads them even if training does not validate.
        return list(itertools.islice(pipeline, max(config.train.eval_batches, 0)))
    finally:
        pipeline.close()


_ADDING = {
    "judge": "lacy judge --config=... --config.dataset.path={path}",
    "reference_nll": "lacy score --workdir=REFERENCE_RUN --dataset={path}",
}
"""Label -> the command that adds it."""


def _stored_labels(config: ml_collections.ConfigDict) -> list[str]:
    """Labels that the policy reads from the dataset: all of them, except the losses of a reference model in memory."""
    modelled = {EXTRA} if config.objective.reference != "dataset" else set()
    return sorted(set(POLICIES[config.objective.policy].labels) - modelled)


def check_labels(config: ml_collections.ConfigDict, pipeline: InputPipeline) -> None:
    """Check that the data has the labels that the policy reads.

    Args:
      config: its group `objective` is read.
      pipeline: the input pipeline of one split.

    Raises:
      DataError: a dataset lacks a label; names the verb that adds it.
    """
    policy = config.objective.policy
    stored = _stored_labels(config)
    for source in pipeline.sources:
        only = "" if source.split == "train" else f" --split={source.split}"  # The train split has them.
        for name in stored:
            if name not in source.labels:
                adding = f"{_ADDING[name]}{only}" if name in _ADDING else "lacy_jax.dataset.write_extra"
                raise DataError(
                    f"config.objective.policy = {policy!r} reads {name}, which split {source.split!r} of dataset {source.path} "
                    f"does not have; add it with {adding.format(path=source.path)}"
                )


def _check_nongrammatical(config: ml_collections.ConfigDict, pipeline: InputPipeline) -> None:
    """Refuse data without non-grammatical tokens, with which `lacy_ignore` would silently be another policy."""
    policy, sources = config.objective.policy, pipeline.sources
    if "nongrammatical" not in POLICIES[policy].labels or config.labels.online:
        return
    if not any(source.metadata.splits[source.split].nongrammatical_tokens for source in sources):
        raise DataError(
            f"config.objective.policy = {policy!r} ignores tokens that are neither factual nor grammatical, and dataset "
            f"{sources[0].path} has none (labels by {sources[0].metadata.labeller}), so it would be the same as policy "
            "'lacy_ignorefacts': choose that one, or prepare the data with a labeller that marks them"
        )


# -- disk space and identity -----------------------------------------------------------------------------------------


def _check_room(workdir: epath.Path, state: TrainState) -> None:
    """Check that the disk has space for a checkpoint."""
    if not files.is_local(workdir) or jax.process_count() > 1:  # Several processes may have a disk each.
        return
    if (workdir / CHECKPOINTS_FOLDER).exists():  # The run is finished, or its next save will find out.
        return
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    place = workdir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{workdir}: {free / 1e9:.2f} GB free, and a checkpoint of this run takes {needed / 1e9:.2f} GB; "
            "free some space or choose another workdir"
        )


def _identity(
    config: ml_collections.ConfigDict, tokenizer: Tokenizer, pipeline: InputPipeline, reference: Run | None
) -> dict[str, dict[str, Any]]:
    """What a checkpoint belongs to. The data order is not included, because the pipeline's state has it."""
    identity: dict[str, dict[str, Any]] = {
        "config": config_lib.training_fields(config),
        "data": {"tokenizer": tokenizer.hash},
    }
    if reference is not None:
        identity["reference"] = {"model": reference.fingerprint}
    extras = [name for name in _stored_labels(config) if name not in STORED_LABELS]
    if extras:
        identity["stored"] = {
            name: "-".join(fingerprint_of(source.extras[name]) for source in pipeline.sources)
            for name in extras
        }
    if pipeline.links is not None:
        linked = {"entries": pipeline.links.fingerprint, "encoder": pipeline.links.about.encoder}
        spans = "-".join(fingerprint_of(source.extras[QUERY_ENTRY]) for source in pipeline.sources)
        identity["queries"] = {**linked, "spans": spans}
    return identity

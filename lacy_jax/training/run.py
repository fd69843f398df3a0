"""Loading a run directory, for generation, evaluation, export, or as a frozen reference model (`reference.py`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from lacy_jax import config as config_lib
from lacy_jax.errors import CheckpointError, ConfigError
from lacy_jax.models import ModelConfig, Transformer, resolve_model_config
from lacy_jax.models.config import RUN_FIELDS
from lacy_jax.registry import load_plugins
from lacy_jax.run_files import CHAT_TEMPLATE_FILE, CHECKPOINTS_FOLDER, TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import sharding
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.state import ModelDefinition

_SAME_RESULT = frozenset(RUN_FIELDS) - {"dtype"}
"""Fields that do not change what a frozen model computes, apart from the order of sums."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with everything needed to use it.

    Attributes:
      workdir: run directory.
      config: the run's config.
      step: step of the loaded checkpoint.
      model: the transformer with float32 parameters.
      tokenizer: the run's tokenizer.
      definition, params: definition and parameters separately, for jitted functions of parameters.
      meta: the checkpoint's JSON record.
    """

    workdir: epath.Path
    config: ml_collections.ConfigDict
    step: int
    model: Transformer
    tokenizer: Tokenizer
    definition: ModelDefinition
    params: Any
    meta: dict[str, Any]

    @property
    def chat_template(self) -> str:
        """The Jinja text; "" if it has none: only imported models bring one, and runs that begin with such a model."""
        for folder in (self.workdir, self.config.train.init_from):
            if folder and (file := epath.Path(folder) / CHAT_TEMPLATE_FILE).exists():
                return file.read_text()
        return ""

    @property
    def model_config(self) -> ModelConfig:
        """Dimensions of the model."""
        return self.definition.config

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the model's output depends on: parameters (by checksum), dimensions, tokenizer."""
        params = {n: v for n, v in self.meta["checksums"].items() if n.startswith("params/")}
        # Fields with their default values are left out, so that a field added later does not change the hash.
        model = {
            field.name: getattr(self.model_config, field.name)
            for field in dataclasses.fields(ModelConfig)
            if field.name not in _SAME_RESULT and getattr(self.model_config, field.name) != field.default
        }
        what = [params, model, self.tokenizer.hash]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def load_run(workdir: epath.PathLike, step: int = 0, mesh: Mesh | None = None) -> Run:
    """Load a model from its run directory.

    Args:
      workdir: run directory of `lacy train`.
      step: checkpoint step; 0 = the latest (if it is damaged, that is reported and the one before is used).
      mesh: mesh for the parameters, sharded as in training; None = the first local device.

    Raises:
      CheckpointError: there is no run, no checkpoint, or no such step, or every checkpoint is damaged.
      DataError: the run's tokenizer is missing or damaged.
    """
    workdir = epath.Path(workdir)
    config = config_lib.read_run_config(workdir)
    load_plugins(config.plugins)
    tokenizer = Tokenizer.load(workdir / TOKENIZER_FILE)
    dimensions = resolve_model_config(config.model, tokenizer.vocab_size, config.input.seq_len)
    definition = ModelDefinition(dimensions, config.train.trainable)
    if mesh is None:
        mesh = sharding.make_mesh(config_lib.get_default_config().mesh, jax.local_devices()[:1])
    where = sharding.parameter_shardings(definition.abstract_params, definition.axes, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        definition.abstract_params,
        where,
    )
    if not (workdir / CHECKPOINTS_FOLDER).exists():
        raise CheckpointError(
            f"no checkpoint in {workdir}: train the run first (lacy train --workdir={workdir})"
        )
    with Checkpointer(workdir) as checkpointer:
        steps = checkpointer.steps()
        if step and step not in steps:
            raise CheckpointError(
                f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}"
            )
        restored = checkpointer.restore(step, abstract) if step else checkpointer.restore_latest(abstract)
    if restored is None:
        raise CheckpointError(
            f"no checkpoint in {workdir}: train the run first (lacy train --workdir={workdir})"
        )
    return Run(
        workdir=workdir,
        config=config,
        step=restored.step,
        model=definition.merge(restored.params),
        tokenizer=tokenizer,
        definition=definition,
        params=restored.params,
        meta=restored.meta,
    )


def load_initial(
    config: ml_collections.ConfigDict, model: ModelConfig, tokenizer_hash: str, mesh: Mesh
) -> Any:
    """Initial parameters for a fresh run, from the run named by `train.init_from`.

    Returns:
      Nested dict of float32 arrays, sharded over the mesh as in training.

    Raises:
      ConfigError: its tokenizer or model differs; names the first field that differs, with both values.
      CheckpointError: see `load_run`.
    """
    field = config.train.init_from
    run = load_run(field, mesh=mesh)
    if run.tokenizer.hash != tokenizer_hash:
        raise ConfigError(
            f"config.train.init_from = {field!r}: its tokenizer is {run.tokenizer.hash}, the dataset's {tokenizer_hash}; "
            f"prepare the dataset with config.tokenizer.path = {field}/{TOKENIZER_FILE}"
        )
    # Rotary positions have no table, so their context may change.
    free = {*RUN_FIELDS, *(["max_seq_len"] if model.family == "llama" else [])}
    for entry in dataclasses.fields(ModelConfig):
        theirs, ours = getattr(run.model_config, entry.name), getattr(model, entry.name)
        if entry.name not in free and theirs != ours:
            raise ConfigError(
                f"config.train.init_from = {field!r}: its model has {entry.name} = {theirs!r}, config.model {ours!r}; "
                f"set config.model.{entry.name}"
            )
    return run.params

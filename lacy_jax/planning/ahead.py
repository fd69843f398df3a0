"""The train step, compiled for TPUs on a machine without any: described devices, memory, and the program."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding

from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.query_links import QUERY_ENTRY, places_of
from lacy_jax.dataset.records import STORED_LABELS
from lacy_jax.errors import ConfigError
from lacy_jax.models import ModelConfig, resolve_model_config
from lacy_jax.models.attention import choose
from lacy_jax.objectives import POLICIES, QueryTargets
from lacy_jax.planning.links import closed
from lacy_jax.planning.slices import TPUS, Topology, shapes
from lacy_jax.setup import versions
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import sharding
from lacy_jax.training.state import ModelDefinition, abstract_state, optimizer_for, state_shardings
from lacy_jax.training.step import make_train_step, refused_options


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one chip, bytes.

    Attributes:
      arguments: parameters, optimiser state and batch.
      temporaries: everything else alive at the worst moment: activations, gradients, gathered parameters.
      program: the compiled code.
      available: what a program may use.
    """

    arguments: int
    temporaries: int
    program: int
    available: int

    @property
    def used(self) -> int:
        """Bytes at the worst moment; outputs lie in the donated arguments."""
        return self.arguments + self.temporaries + self.program

    @property
    def left(self) -> int:
        """Bytes still free at the worst moment."""
        return self.available - self.used


@dataclasses.dataclass(frozen=True)
class DoesNotFit:
    """The compiler's verdict: the bytes needed (as far as it says) and the bytes available."""

    needed: int
    available: int


def compiled_place(place: Topology) -> Topology:
    """The slice that a step for `place` is compiled for: `place`; or, where the installed libtpu does not know the chip, as many
    devices of its stand-in.

    Raises:
      ConfigError: there is no libtpu, or no such slice of the stand-in.
    """
    stand_in = TPUS.get(place.chip.stand_in)
    if stand_in is None or _knows(dataclasses.replace(place, shape=_SMALLEST, slices=1)):
        return place
    count = place.devices // place.slices // stand_in.devices
    shape = shapes(stand_in).get(count)
    if shape is None:
        raise ConfigError(
            f"--topology={place.layout}: libtpu {versions.version('libtpu')} does not know {place.chip.name}, and {stand_in.name}, whose "
            f"program would be read instead, has no slice of {count} chips; take another slice, or install a newer libtpu"
        )
    return Topology(stand_in, shape, place.slices)


_SMALLEST = (2, 2, 1)
"""A slice that every chip of three dimensions has."""


def tpu_devices(place: Topology) -> list[jax.Device]:
    """Descriptions of the chips; they compile but cannot run.

    Raises:
      ConfigError: libtpu is missing or refuses the topology.
    """
    try:
        return list(_described(place).devices)
    except ConfigError:
        raise
    except Exception as error:  # The plug-in raises several kinds of errors for an unknown topology.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--topology={place.layout}: the TPU compiler refuses it: {first}") from error


def _knows(place: Topology) -> bool:
    """Whether libtpu has such a slice.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        _described(place)
    except ConfigError:
        raise
    except Exception:
        return False
    return True


def _described(place: Topology) -> Any:
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ConfigError(
            "lacy plan compiles with libtpu, which is not installed: pip install 'lacy_jax[tpu]' (Linux x86-64, no TPU needed)"
        )
    look_for_no_tpu()
    from jax.experimental import topologies

    # Without being told, the compiler takes every slice for open at its ends, and gathers over it as sums of arrays full of zeros.
    more: dict[str, Any] = {"wrap": (*closed(place), False)[:3]}
    if place.slices > 1:
        more["num_slices"] = place.slices
    if place.chip.name == "v4":  # Both cores as one device, as on a real v4.
        more["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(platform="tpu", topology_name=place.layout, **more)


def look_for_no_tpu() -> None:
    """Keep JAX and libtpu, in this process, from looking for a TPU: libtpu would ask the cloud's metadata server, which takes
    minutes."""
    # Without the answers that it would get, libtpu complains on stderr. As no TPU is used, plans may run side by side.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TPU_MIN_LOG_LEVEL", "3"), ("TPU_STDERR_LOG_LEVEL", "3"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    # Programs for a TPU that is not there cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)


def model_for_tpu(config: ml_collections.ConfigDict, mesh: Mesh) -> ModelConfig:
    """Dimensions of the config's model, with `auto` attention resolved for a mesh of TPUs."""
    vocabulary = config.tokenizer.vocab_size
    if config.tokenizer.path and os.path.exists(config.tokenizer.path):
        vocabulary = Tokenizer.load(config.tokenizer.path).vocab_size
    model = resolve_model_config(config.model, vocabulary, config.input.seq_len)
    if model.attention == "auto":  # Resolved for the planned platform, not for this process.
        chosen = choose(
            "tpu", config.input.seq_len, model.head_dim, jnp.dtype(model.dtype), mesh.shape["sequence"]
        )
        model = dataclasses.replace(model, attention=chosen)
    return model


def compile_step(
    config: ml_collections.ConfigDict, model_config: ModelConfig, mesh: Mesh, place: Topology
) -> tuple[Memory, str] | DoesNotFit:
    """(memory, compiled program as HLO text) of one train step of `config` on `place`, or how much memory it lacks."""
    return compile_lowered(config, lower_step(config, model_config, mesh), place)


def lower_step(
    config: ml_collections.ConfigDict, model_config: ModelConfig, mesh: Mesh
) -> jax.stages.Lowered:
    """One train step of `config`, as JAX hands it to the compiler."""
    model = ModelDefinition(model_config, config.train.trainable)
    tx = optimizer_for(config, model)
    over_data = config.train.shard_optimizer
    state = abstract_state(model, tx, mesh, over_data)
    labels = POLICIES[config.objective.policy].labels
    modelled = "reference_nll" in labels and config.objective.reference != "dataset"
    step: Any = make_train_step(
        config, model, tx, mesh, state_shardings(model, tx, mesh, over_data), model if modelled else None
    )
    stored = set(labels) - ({"reference_nll"} if modelled else set())
    stored |= {QUERY_ENTRY} if config.model.query_dim else set()
    batch = _abstract_batch(config, mesh, stored)
    # Only the abstract mesh: constants made while tracing must not be placed on devices that do not exist.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return step.lower(state, batch, state.params if modelled else None)


def compile_lowered(
    config: ml_collections.ConfigDict, lowered: jax.stages.Lowered, place: Topology
) -> tuple[Memory, str] | DoesNotFit:
    """`compile_step`, from the step that is already lowered."""
    with tempfile.TemporaryDirectory(prefix="lacy_plan_") as folder:
        try:
            program = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            if refused := refused_options(config, error):
                raise refused from error
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return read_out_of_memory(str(error), place.chip.hbm_bytes)
        text = program_text(program, pathlib.Path(folder))
    memory = memory_of(program, place)
    return (memory, text) if memory.left >= 0 else DoesNotFit(memory.used, memory.available)


def memory_of(program: Any, place: Topology) -> Memory:
    """What a compiled program occupies."""
    stats = program.memory_analysis()
    arguments = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    # All that the compiler lays out in HBM, arguments included. Its "temporaries" count the chip's own memory, too, and what is
    # placed twice at different times.
    allocated = getattr(stats, "total_allocation_bytes", 0) or arguments + stats.temp_size_in_bytes
    return Memory(
        arguments=arguments,
        temporaries=allocated - arguments,
        program=stats.generated_code_size_in_bytes,
        available=place.chip.hbm_bytes,
    )


def read_out_of_memory(message: str, capacity: int) -> DoesNotFit:
    """The bytes needed and available as the compiler reports them; if it does not, just over `capacity` needed."""
    sizes = [
        int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit])
        for number, unit in re.findall(r"([\d.]+)([KMGT])\b", message)
    ]
    if len(sizes) < 2 or sizes[0] <= sizes[1]:
        return DoesNotFit(capacity + 1, capacity)
    return DoesNotFit(sizes[0], sizes[1])


def _abstract_batch(config: ml_collections.ConfigDict, mesh: Mesh, stored: set[str]) -> Batch:
    """Shapes of a batch with the labels `stored` in its dataset; these have the widest type, as no dataset is open."""
    shape = (config.input.batch_size, config.input.seq_len)
    where = sharding.batch_sharding(mesh)

    def leaf(dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    ids, bit = leaf(jnp.int32), leaf(jnp.bool_)
    return Batch(
        tokens=ids, targets=ids, positions=ids, segment_ids=ids, weights=bit,
        labels={name: leaf(jnp.float32) for name in stored} | dict.fromkeys(STORED_LABELS, bit),
        queries=_abstract_queries(config, where),
    )  # fmt: skip


def _abstract_queries(config: ml_collections.ConfigDict, where: NamedSharding) -> QueryTargets | None:
    """Shapes of the entries of a batch; None without a query head."""
    if not config.model.query_dim:
        return None
    shape = (config.input.batch_size, places_of(config.input.seq_len))
    entries: Any = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)
    vectors: Any = jax.ShapeDtypeStruct((*shape, config.model.query_dim), jnp.float32, sharding=where)
    return QueryTargets(entries, vectors)


def program_text(program: Any, folder: pathlib.Path) -> str:
    """HLO text of a compiled program, as the compiler itself wrote it to `folder`.

    `as_text()` gives the same text but is the second choice: it sends the program through JAX, which rejects some
    programs of a libtpu of another release (docs/plan.md).
    """
    written = sorted(folder.glob("*.after_codegen.txt"))
    return written[-1].read_text() if written else program.as_text()

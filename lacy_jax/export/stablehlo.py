"""`lacy export --format=stablehlo`: prefill and decode as programs that run without our model code.

A folder of four files. `jax.export.deserialize` reads the two programs, `safetensors.numpy.load_file` the parameters:

    parameters = load_file("parameters.safetensors")                       # {name: float32 array}
    prefill, decode = (jax.export.deserialize(bytearray(open(f, "rb").read())) for f in ("prefill.bin", "decode.bin"))
    logits, keys, values = prefill.call(parameters, tokens, positions)      # int32 [b, t] each -> [b, t, V + 1]
    logits, keys, values = decode.call(parameters, tokens, positions, keys, values)  # int32 [b, 1] -> [b, 1, V + 1]

b and t are symbolic: one program serves every batch and prompt length. A row is fed without gaps from position 0; a
token whose position is outside [0, context) is padding. CALL is the last column. The programs run on CPU, CUDA and TPU.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from lacy_jax.export import check, provenance
from lacy_jax.export.extras import require
from lacy_jax.export.folder import finished_folder
from lacy_jax.export.source import Source
from lacy_jax.models import Cache, init_cache
from lacy_jax.training.state import ModelDefinition

PLATFORMS = ("cpu", "cuda", "tpu")
_FILES = ("prefill.bin", "decode.bin")
_SEPARATOR = "/"


def export_stablehlo(source: Source, out: pathlib.Path) -> dict[str, Any]:
    """Write the folder, read it back, compare with the model, and only then name it `out`.

    Returns:
      The record that is also in OUT/lacy.json.

    Raises:
      ConfigError: `out` exists. LacyError: a package is missing, the disk is full, or the programs differ from the model.
    """
    save_file = require("safetensors.numpy", "lacy export --format=stablehlo").save_file
    require("flatbuffers", "lacy export --format=stablehlo")  # JAX serialises programs with it.
    cfg = dataclasses.replace(source.run.model_config, dtype="float32", remat="none", attention="xla")
    definition = ModelDefinition(cfg)
    flat = flatten(source.params)
    with finished_folder(out) as folder:
        programs = _programs(definition, flat)
        for name, program in zip(_FILES, programs, strict=True):
            (folder / name).write_bytes(program.serialize())
        save_file(
            {name: np.ascontiguousarray(value) for name, value in flat.items()},
            folder / "parameters.safetensors",
        )
        checks = {
            "logits": f"{check.differing(*_difference(folder, source))}, prefill then decode",
            "platforms": ", ".join(PLATFORMS),
        }
        record = provenance.describe(source, "stablehlo", checks)
        source.run.tokenizer.save(folder / "tokenizer.model")
        provenance.write(folder, record)
    return record


def flatten(params: Any) -> dict[str, np.ndarray]:
    """{"blocks/query": array, ..}."""
    leaves, _ = jax.tree.flatten_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator=_SEPARATOR): np.asarray(x) for path, x in leaves
    }


def _programs(definition: ModelDefinition, flat: dict[str, np.ndarray]) -> tuple[Any, Any]:
    cfg = definition.config
    order = list(flat)

    def run(parameters: dict[str, Any], tokens: Any, positions: Any, cache: Cache) -> tuple[Any, Any, Any]:
        model = definition.merge([parameters[name] for name in order])  # Leaves in the order of our own tree.
        hidden, cache = model.decode(tokens, positions, cache)
        z, c = model.logits(hidden)
        k, v = (tuple(slots for (slots,) in layers) for layers in (cache.k, cache.v))
        return jnp.concatenate([z, c[..., None]], axis=-1), k, v

    def prefill(parameters: dict[str, Any], tokens: Any, positions: Any) -> tuple[Any, Any, Any]:
        return run(
            parameters, tokens, positions, init_cache(cfg, tokens.shape[0], cfg.max_seq_len, cut=False)
        )

    def decode(
        parameters: dict[str, Any], tokens: Any, positions: Any, k: Any, v: Any
    ) -> tuple[Any, Any, Any]:
        whole = Cache(*(tuple((slots,) for slots in layers) for layers in (k, v)))
        return run(parameters, tokens, positions, whole)

    b, t = jax_export.symbolic_shape("b, t")
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat.items()}
    slots = jax.ShapeDtypeStruct((b, cfg.n_kv_heads, cfg.max_seq_len, cfg.head_dim), jnp.float32)
    held = (slots,) * cfg.n_layers

    def ids(length: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, length), jnp.int32)

    def exported(fn: Callable[..., Any], *arguments: Any) -> Any:
        return jax_export.export(jax.jit(fn), platforms=PLATFORMS)(abstract, *arguments)

    return exported(prefill, ids(t), ids(t)), exported(decode, ids(1), ids(1), held, held)


def _difference(folder: pathlib.Path, source: Source) -> tuple[float, float]:
    """Compares the programs with the model (`check.compare`): two batch sizes, a prompt and then one token."""
    parameters = require("safetensors.numpy").load_file(folder / "parameters.safetensors")
    prefill, decode = (jax_export.deserialize(bytearray((folder / name).read_bytes())) for name in _FILES)
    length = min(source.run.model_config.max_seq_len, 24)
    worst = (0.0, 0.0)
    for rows in (1, 3):
        tokens = check.sample_tokens(source.run.tokenizer, length)[-rows:]
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
        want = check.logits(source.run.model, tokens)
        with jax.default_matmul_precision("highest"):
            first, k, v = prefill.call(parameters, tokens[:, :-1], positions[:, :-1])
            last, _, _ = decode.call(parameters, tokens[:, -1:], positions[:, -1:], k, v)
        got = np.concatenate([np.asarray(first), np.asarray(last)], axis=1)
        found = check.compare(got, want, check.TOLERANCE, "the exported programs are not the model")
        worst = max(worst, found)
    return worst

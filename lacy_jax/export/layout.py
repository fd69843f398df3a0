"""Name and shape of each of our parameters in a Hugging Face checkpoint.

Ours stack all layers on a first axis and keep heads apart; theirs have a tensor per layer and heads merged. GPT-2
stores its matrices [in, out] (`Conv1D`) and q, k, v as one; Llama and its kin store them [out, in]. Rotary pairs are
(i, i + K/2) on both sides, so no permutation is needed.

The base head W [V, D] and the CALL head w_call [D] join as row V of a (V+1)-row output matrix (method: arXiv:2602.12005
§4). CALL is never an input, so row V of the embedding is never read: it is w_call where the head is tied, else zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lacy_jax.errors import CheckpointError, DataError
from lacy_jax.models import ModelConfig

Path = tuple[str, ...]
Read = Callable[[str], np.ndarray]
"""Returns the tensor with a name, float32."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face checkpoint.

    Attributes:
      name: theirs.
      shape: theirs.
      ours: paths of our parameters in it; if there are several, they are joined along the last axis (GPT-2's q, k, v).
      layer: index into our stacked axis; -1 for a parameter that is not stacked.
      transpose: whether theirs is [out, in].
    """

    name: str
    shape: tuple[int, ...]
    ours: tuple[Path, ...]
    layer: int = -1
    transpose: bool = False


def embedding_name(cfg: ModelConfig) -> str:
    """Name of the embedding table [rows, D]."""
    return "transformer.wte.weight" if cfg.family == "gpt2" else "model.embed_tokens.weight"


HEAD_NAME = "lm_head.weight"


def tensors(cfg: ModelConfig) -> list[Tensor]:
    """All tensors except the embedding and the head, in file order."""
    return _gpt2(cfg) if cfg.family == "gpt2" else _llama(cfg)


def _gpt2(cfg: ModelConfig) -> list[Tensor]:
    d, f, width = cfg.d_model, cfg.d_ff, cfg.n_heads * cfg.head_dim
    found = [Tensor("transformer.wpe.weight", (cfg.max_seq_len, d), (("position",),))]
    for i in range(cfg.n_layers):

        def add(name: str, shape: tuple[int, ...], *ours: Path, i: int = i) -> None:
            found.append(
                Tensor(f"transformer.h.{i}.{name}", shape, tuple(("blocks", *path) for path in ours), i)
            )

        add("ln_1.weight", (d,), ("attention_norm", "scale"))
        add("ln_1.bias", (d,), ("attention_norm", "bias"))
        add("attn.c_attn.weight", (d, 3 * width), ("query",), ("key",), ("value",))
        add("attn.c_attn.bias", (3 * width,), ("query_bias",), ("key_bias",), ("value_bias",))
        add("attn.c_proj.weight", (width, d), ("attention_out",))
        add("attn.c_proj.bias", (d,), ("attention_out_bias",))
        add("ln_2.weight", (d,), ("mlp_norm", "scale"))
        add("ln_2.bias", (d,), ("mlp_norm", "bias"))
        add("mlp.c_fc.weight", (d, f), ("mlp_in",))
        add("mlp.c_fc.bias", (f,), ("mlp_in_bias",))
        add("mlp.c_proj.weight", (f, d), ("mlp_out",))
        add("mlp.c_proj.bias", (d,), ("mlp_out_bias",))
    found.append(Tensor("transformer.ln_f.weight", (d,), (("final_norm", "scale"),)))
    found.append(Tensor("transformer.ln_f.bias", (d,), (("final_norm", "bias"),)))
    return found


def _llama(cfg: ModelConfig) -> list[Tensor]:
    d, f = cfg.d_model, cfg.d_ff
    queries, keys = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    found = []
    for i in range(cfg.n_layers):

        def add(name: str, shape: tuple[int, ...], *path: str, i: int = i) -> None:
            found.append(
                Tensor(f"model.layers.{i}.{name}", shape, (("blocks", *path),), i, transpose=len(shape) == 2)
            )

        add("input_layernorm.weight", (d,), "attention_norm", "scale")
        of_inputs, of_output, of_mlp = cfg.biases
        for part, ours, out, inner, biased in (
            ("q", "query", queries, d, of_inputs),
            ("k", "key", keys, d, of_inputs),
            ("v", "value", keys, d, of_inputs),
            ("o", "attention_out", d, queries, of_output),
        ):
            add(f"self_attn.{part}_proj.weight", (out, inner), ours)
            if biased:
                add(f"self_attn.{part}_proj.bias", (out,), f"{ours}_bias")
        if cfg.qk_norm:
            add("self_attn.q_norm.weight", (cfg.head_dim,), "query_norm")
            add("self_attn.k_norm.weight", (cfg.head_dim,), "key_norm")
        add("post_attention_layernorm.weight", (d,), "mlp_norm", "scale")
        for part, ours, out, inner in (
            ("gate", "mlp_gate", f, d),
            ("up", "mlp_in", f, d),
            ("down", "mlp_out", d, f),
        ):
            add(f"mlp.{part}_proj.weight", (out, inner), ours)
            if of_mlp:
                add(f"mlp.{part}_proj.bias", (out,), f"{ours}_bias")
    found.append(Tensor("model.norm.weight", (d,), (("final_norm", "scale"),)))
    return found


def to_hugging_face(
    cfg: ModelConfig, params: Any, with_call: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors, float32, one at a time.

    Args:
      cfg: dimensions.
      params: nested dict of our parameters.
      with_call: False leaves row V out.

    Raises:
      CheckpointError: a parameter is not finite; it is named.
    """
    call = _finite(params["call"], "call")[None][:with_call]
    embedding = _finite(params["embedding"], "embedding")
    yield embedding_name(cfg), np.concatenate([embedding, call if cfg.tie_head else np.zeros_like(call)])
    for tensor in tensors(cfg):
        parts = []
        for path in tensor.ours:
            value = _at(params, path)
            value = _finite(value if tensor.layer < 0 else value[tensor.layer], ".".join(path))
            parts.append(value if len(tensor.shape) == 1 else _matrix(value, tensor))
        if len(tensor.shape) == 1:
            yield tensor.name, np.concatenate([part.reshape(-1) for part in parts])
        else:
            yield tensor.name, np.ascontiguousarray(np.concatenate(parts, axis=-1))
    if not cfg.tie_head:
        yield HEAD_NAME, np.concatenate([_finite(params["head"], "head"), call])


def from_hugging_face(
    cfg: ModelConfig, abstract: Any, read: Read, rows: int, where: str, call_row: int | None = None
) -> Any:
    """Our parameters from their tensors, float32 numpy.

    Args:
      cfg: dimensions; its vocabulary may be smaller than the stored one; the extra rows are left out.
      abstract: nested dict of `jax.ShapeDtypeStruct` of our parameters.
      read: returns a tensor by its name; raises if it is missing.
      rows: of the stored embedding and head.
      where: names the checkpoint in errors.
      call_row: row of the head that is w_call; None = it has none.

    Returns:
      Nested dict of arrays. A model without CALL gets the mean of the head's rows, so that c starts as the mean of the
      base logits, as in a fresh model (`Transformer`).

    Raises:
      DataError: a tensor is not finite, or its shape differs from the config; it is named.
    """
    params = _empty(abstract)

    def checked(name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = read(name)
        if value.shape != shape:
            raise DataError(f"{where}: tensor {name} has shape {value.shape}, but the config means {shape}")
        if not np.isfinite(value).all():
            raise DataError(f"{where}: tensor {name} is damaged: it holds values that are not finite")
        return value

    head = checked(embedding_name(cfg), (rows, cfg.d_model))
    params["embedding"][...] = head[: cfg.vocab_size]
    for tensor in tensors(cfg):
        value = checked(tensor.name, tensor.shape)
        value = value.T if tensor.transpose else value
        for path, part in zip(tensor.ours, np.split(value, len(tensor.ours), axis=-1), strict=True):
            target = _at(params, path)
            if tensor.layer < 0:
                target[...] = part.reshape(target.shape)
            else:
                target[tensor.layer] = part.reshape(target.shape[1:])
    if not cfg.tie_head:
        head = checked(HEAD_NAME, (rows, cfg.d_model))
        params["head"][...] = head[: cfg.vocab_size]
    mean = head[: cfg.vocab_size].mean(axis=0, dtype=np.float64)
    params["call"][...] = mean if call_row is None else head[call_row]
    return params


def _matrix(value: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Our matrix with separate heads, as their two-dimensional one (or as a part of it, if theirs joins several)."""
    if tensor.transpose:
        return value.reshape(tensor.shape[1], tensor.shape[0]).T
    return value.reshape(tensor.shape[0], -1)


def _at(params: Any, path: Path) -> Any:
    for name in path:
        params = params[name]
    return params


def _finite(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value, np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"parameter {name} holds values that are not finite: choose another checkpoint (--step)"
        )
    return array


def _empty(abstract: Any) -> Any:
    if isinstance(abstract, dict):
        return {name: _empty(value) for name, value in abstract.items()}
    return np.zeros(abstract.shape, np.float32)

"""What benchmarks/gpu.py measures, in an order of falling promise.

A piece stands by itself and returns raw figures (seconds, bytes, tokens); benchmarks/gpu.py makes ratios of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from gpu_kernels import ATTENDS, add_attentions, measure_attention, measure_loss, measure_torch_loss
from gpu_model import (
    Size,
    measure_copy,
    measure_decode,
    measure_matmul,
    measure_parts,
    measure_policies,
    measure_shapes,
    measure_step,
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One measurement.

    Attributes:
      name: "KIND.WHICH".
      measure: size -> figures.
      jax: whether JAX may keep the card's memory to itself; False for other libraries.
    """

    name: str
    measure: Callable[[Size], dict[str, Any]]
    jax: bool = True


def _step(name: str, style: str, rows: int, **given: Any) -> Piece:
    return Piece(f"step.{name}", functools.partial(measure_step, style=style, rows=rows, **given))


def _step_with(attention: str, rows: int = 16, **fields: Any) -> Piece:
    """With an attention that is not ours yet: what changing it would bring."""

    def measure(size: Size) -> dict[str, Any]:
        add_attentions()
        return measure_step(size, "llama", rows, **_KEEP | {"model__attention": attention} | fields)

    return Piece(f"step.with.{attention}" + f".unrolled.{rows}" * bool(fields), measure)


def _loss(name: str, *given: Any) -> Piece:
    return Piece(f"loss.{name}", lambda size: measure_loss(size, *given))


def _torch(name: str, *given: Any) -> Piece:
    return Piece(f"loss.{name}", lambda size: measure_torch_loss(size, *given), jax=False)


CHUNKS = (512, 1024, 2048, 4096, 8192)
_KEEP = {"model__remat": "none", "objective__chunk": 4096}
_UNROLLED = {"model__scan_layers": False}
PIECES = (
    Piece("ceiling.matmul", measure_matmul),
    Piece("ceiling.copy", measure_copy),
    _step("llama.default", "llama", 16),
    _step("llama.none.16", "llama", 16, **_KEEP),
    *(Piece(f"attention.{name}", functools.partial(measure_attention, name=name)) for name in ATTENDS),
    _step_with("cudnn_causal"),
    _step_with("cudnn_packed"),
    _step_with("tokamax_mosaic"),
    *(_loss(f"fused.{chunk}", "fused", chunk) for chunk in CHUNKS),
    _loss("fused.default", "fused"),
    _loss("naive", "naive"),
    _loss("plain", "plain"),
    _loss("tokamax.chunked_xla", "chunked_xla"),
    _loss("tokamax.xla", "xla"),
    _torch("liger", "liger"),
    _torch("liger.float32", "liger_float32"),
    _torch("liger.float32.8", "liger_float32", 8),
    _torch("torch", "torch"),
    _step("llama.none.32", "llama", 32, **_KEEP),
    _step("gpt2.default", "bf16", 16),
    Piece("policies.llama", measure_policies),
    Piece("decode.1", functools.partial(measure_decode, rows=1)),
    Piece("decode.16", functools.partial(measure_decode, rows=16)),
    Piece("decode.64", functools.partial(measure_decode, rows=64)),
    _step("gpt2.none.16", "bf16", 16, **_KEEP),
    Piece("profile.parts", measure_parts),
    Piece("ceiling.shapes", measure_shapes),
    _step("llama.attention.64", "llama", 64, **_KEEP | {"model__remat": "attention"}),
    _step("llama.dots.64", "llama", 64, **_KEEP | {"model__remat": "dots"}),
    _step("llama.no_triton.16", "llama", 16, options={"xla_gpu_enable_triton_gemm": False}, **_KEEP),
    _step("llama.xla.16", "llama", 16, **_KEEP | {"model__attention": "xla"}),
    _step("llama.float32_gather.16", "llama", 16, **_KEEP | {"train__shard_optimizer": False}),
    _step("llama.chunk_8192.16", "llama", 16, **_KEEP | {"objective__chunk": 8192}),
    _step("llama.unrolled.16", "llama", 16, **_KEEP | _UNROLLED),
    _step("llama.unrolled.32", "llama", 32, **_KEEP | _UNROLLED),
    _step_with("tokamax_mosaic", 16, **_UNROLLED),
    _step_with("tokamax_mosaic", 32, **_UNROLLED),
    _step("gpt2.unrolled.16", "bf16", 16, **_KEEP | _UNROLLED),
)
"""Names of a step: style, remat policy or what else is not as `_KEEP` has it, rows. `step.with` is not counted in the MFU."""

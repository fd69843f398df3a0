"""Pieces of benchmarks/gpu.py: attention and the loss, ours and others'."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_model import Size, compiled, dimensions, seconds_per_call, temporary_bytes
from step import VOCABULARY, make_batch

from lacy_jax.models import Mask
from lacy_jax.models.attention import ATTENTIONS, Attention
from lacy_jax.objectives import delegated_cross_entropy

MOST_DOCUMENTS = 32
"""Of a row, for cuDNN's packed layout, which has them as an axis. Rows of `make_batch` hold 5 on average."""

# -- attention ---------------------------------------------------------------------------------------------------------


def _cudnn_causal(q: Any, k: Any, v: Any, segments: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _cudnn_packed(q: Any, k: Any, v: Any, segments: Any) -> Any:
    """Each document a sequence of its own, by offsets; JAX has this in a private module only."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    length = segments.shape[1]
    first = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    starts = jax.vmap(lambda row: jnp.nonzero(row, size=MOST_DOCUMENTS + 1, fill_value=-1)[0])(first)
    starts = starts.astype(jnp.int32)
    ends = jnp.where(starts[:, 1:] >= 0, starts[:, 1:], length)
    lengths = jnp.where(starts[:, :-1] >= 0, ends - starts[:, :-1], -1)
    return dot_product_attention(
        q, k, v, q_seqlen=lengths, kv_seqlen=lengths, q_offsets=starts, kv_offsets=starts,
        scale=q.shape[-1] ** -0.5, mask_type=MaskType.PADDING_CAUSAL,
    )  # fmt: skip


def _pallas(q: Any, k: Any, v: Any, segments: Any) -> Any:
    """JAX's example of a Triton kernel."""
    from jax.experimental.pallas.ops.gpu.attention import mha

    return mha(q, k, v, segments, q.shape[-1] ** -0.5, True)


def tokamax(module: str) -> Any:
    """A module of tokamax; its benchmarks want xprof, 32 MB, of which we need nothing."""
    if "xprof" not in sys.modules and importlib.util.find_spec("xprof") is None:
        for name in ("xprof", "xprof.cli", "xprof.cli.tools", "xprof.cli.tools.get_kernel_stats_tool"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules["xprof.cli.tools"].get_kernel_stats_tool = None  # type: ignore[attr-defined]
    return importlib.import_module(f"tokamax._src.ops.{module}")


def _tokamax(name: str, q: Any, k: Any, v: Any, segments: Any) -> Any:
    """Each query sees the keys from the start of its document on."""
    api, base = tokamax("attention.api"), tokamax("attention.base")
    places = jnp.arange(segments.shape[1])
    change = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    start = jax.lax.cummax(jnp.where(change, places, 0), axis=1)[:, None].astype(jnp.int32)
    return api.IMPLEMENTATIONS[name](q, k, v, mask=base.Mask(k_start=start, is_causal=True))


def _ours(name: str, q: Any, k: Any, v: Any, segments: Any) -> Any:
    attend = ATTENTIONS[name].attend
    assert attend is not None
    return attend(q, k, v, Mask(segments))


ATTENDS: dict[str, Callable[..., Any]] = {
    "cudnn": functools.partial(_ours, "cudnn"),
    "cudnn_causal": _cudnn_causal,
    "cudnn_packed": _cudnn_packed,
    "tokamax_mosaic": functools.partial(_tokamax, "mosaic_gpu"),
    "tokamax_triton": functools.partial(_tokamax, "triton"),
    "xla": functools.partial(_ours, "xla"),
    "pallas": _pallas,
}
"""(q, k, v, segments) -> mixed values. `cudnn_causal` does not see the documents: a lower bound."""


def add_attentions() -> None:
    """Let `model.attention` name those of `ATTENDS`, too."""
    for name, attend in ATTENDS.items():
        if name not in ATTENTIONS:
            ATTENTIONS.add(
                Attention(name, "of benchmarks/gpu.py", lambda q, k, v, m, f=attend: f(q, k, v, m.segments))
            )


def measure_attention(size: Size, name: str) -> dict[str, Any]:
    """Attention of 16 rows of packed documents in one layer; errors are largest differences, relative to the largest value
    of the plain definition in float32.
    """
    cfg = dimensions(size)
    rows = min(16, size.rows)
    segments = jnp.asarray(make_batch(rows, size.length).segment_ids)
    shape = (rows, size.length, cfg.n_heads, cfg.head_dim)
    q, k, v, pull = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(4))
    pull = jnp.where(segments[:, :, None, None] > 0, pull, 0)  # What padding sees is of no interest.

    def differentiated(attend: Callable[..., Any], q: Any, k: Any, v: Any, segments: Any, pull: Any) -> Any:
        out, back = jax.vjp(lambda *x: attend(*x, segments), q, k, v)
        return out, *back(pull)

    attend = ATTENDS[name]
    given = (q, k, v, segments)
    ahead = compiled(attend, *given)
    found = {
        "forward_s": seconds_per_call(size, ahead, *given),
        "forward_flops": 4.0 * rows * size.length**2 * cfg.n_heads * cfg.head_dim,
    }
    both = compiled(functools.partial(differentiated, attend), *given, pull)
    found |= {
        "forward_backward_s": seconds_per_call(size, both, *given, pull),
        "temporary_bytes": temporary_bytes(both),
    }
    if name != "cudnn_causal":
        few = [a[:2] for a in (*given, pull)]
        plain = [a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a for a in few]
        plain = jax.jit(functools.partial(differentiated, functools.partial(_ours, "reference")))(*plain)
        seen = few[3][:, :, None, None] > 0
        pairs = zip(("out", "d_q", "d_k", "d_v"), both(*given, pull), plain, strict=True)
        found["errors"] = {
            which: float(jnp.max(jnp.abs(jnp.where(seen, a[:2] - b, 0))) / jnp.max(jnp.abs(b)))
            for which, a, b in pairs
        }
    return found


# -- loss --------------------------------------------------------------------------------------------------------------


def _plain(hidden: Any, kernel: Any, call_vector: Any, targets: Any, weights: Any, _: Any) -> Any:
    """Mean nll from materialised logits, without CALL."""
    z = jnp.einsum("btd,vd->btv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    nll = jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nll * weights) / jnp.sum(weights) + 0.0 * jnp.sum(call_vector), nll


def _tokamax_loss(
    name: str, hidden: Any, kernel: Any, call_vector: Any, targets: Any, weights: Any, _: Any
) -> Any:
    """The mean over all targets: tokamax knows no weights."""
    loss = tokamax("linear_softmax_cross_entropy_loss.api").linear_softmax_cross_entropy_loss
    rows, head = hidden.reshape(-1, hidden.shape[-1]), kernel.astype(hidden.dtype).T
    return loss(rows, targets.reshape(-1), head, reduction="mean", implementation=name) + 0.0 * jnp.sum(
        call_vector
    ), None


def measure_loss(size: Size, loss: str, chunk: int = 0) -> dict[str, Any]:
    """Value and gradients of hidden (bfloat16), kernel (float32) and CALL vector."""
    delegated = functools.partial(delegated_cross_entropy, policy="lacy", call_rate=0.15, chunk=chunk)
    losses: dict[str, Callable[..., Any]] = {
        "fused": delegated,
        "naive": functools.partial(delegated, loss="reference"),
        "plain": _plain,
    }
    function = losses.get(loss, functools.partial(_tokamax_loss, loss))
    batch, width = make_batch(size.tokens // size.length, size.length, seed=3), dimensions(size).d_model
    keys = jax.random.split(jax.random.key(4), 3)
    given = (
        jax.random.normal(keys[0], (*batch.targets.shape, width), jnp.bfloat16),
        jax.random.normal(keys[1], (VOCABULARY, width)) * width**-0.5,
        jax.random.normal(keys[2], (width,)) * width**-0.5,
        *jax.device_put((batch.targets, batch.weights, batch.labels)),
    )
    program = compiled(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True), *given)
    call_s = seconds_per_call(size, program, *given)
    loss_of_it = float(program(*given)[0][0])
    return {"call_s": call_s, "temporary_bytes": temporary_bytes(program), "loss": loss_of_it}


def measure_torch_loss(size: Size, which: str, budget: int = 1) -> dict[str, Any]:
    """The same in PyTorch: Liger's kernel, with the gradient of the kernel summed in bfloat16 ("liger", its default) or in
    float32, or the library's own functions ("torch"). The kernel is bfloat16 here and so is its gradient.

    Args:
      budget: Liger's `chunk_mem_const`: logits of so many times the hidden states' size at once.
    """
    import torch

    if which != "torch":
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    device, width = "cuda" if torch.cuda.is_available() else "cpu", dimensions(size).d_model
    batch = make_batch(size.tokens // size.length, size.length, seed=3)
    targets = np.where(batch.weights, batch.targets, -100).reshape(-1).astype(np.int64)
    wanted = torch.from_numpy(targets).to(device)
    generator = torch.Generator(device).manual_seed(4)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, device=device)

    hidden = normal(size.tokens, width).bfloat16().requires_grad_()
    kernel = (normal(VOCABULARY, width) * width**-0.5).bfloat16().requires_grad_()

    def call() -> Any:
        hidden.grad = kernel.grad = None
        if which == "torch":
            loss = torch.nn.functional.cross_entropy((hidden @ kernel.T).float(), wanted)
        else:
            dtype = torch.float32 if which == "liger_float32" else None
            loss = liger_fused_linear_cross_entropy(
                hidden, kernel, wanted, accum_dtype=dtype, chunk_mem_const=budget
            )
        loss.backward()
        return loss

    loss = float(call().detach())
    if device == "cpu":
        start = time.perf_counter()
        call()
        return {"call_s": time.perf_counter() - start, "temporary_bytes": 0, "loss": loss}
    hidden.grad = kernel.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    own = sum(x.nbytes for x in (hidden, kernel))  # The gradients are results, not temporaries.
    peak = torch.cuda.max_memory_allocated() - before - own
    rounds = []
    for _ in range(10):
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        call()
        end_event.record()
        torch.cuda.synchronize()
        rounds.append(start_event.elapsed_time(end_event) / 1e3)
    return {"call_s": statistics.median(rounds), "temporary_bytes": peak, "loss": loss}

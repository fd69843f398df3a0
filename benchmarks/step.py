"""What delegation costs: a LaCy step against a plain one, a step against the machine, the fused loss against the naive.

    python benchmarks/step.py [--quick] [--json]

Four comparisons, each within one process, the sides taking turns so that a busy machine slows both alike:
  1. the real train step (forward, backward, AdamW) under policy `lacy` against policy `ntp`, same model, same batch;
  2. FLOPs of that step by formula, over its time, against the best large float32 (or bf16) matmul of this machine;
  3. value and gradients of the loss at V = 32,000, N = 4,096, D = 384: fused, naive (`loss="reference"`), and plain
     cross-entropy by materialised logits. Memory is what XLA reserves for temporaries.
  4. with `train.accumulation` = 4 a step whose mask is taken over the whole step (`objective.mask_scope` = "step", which needs
     a first pass forward) against one with a mask per micro-batch.
Tokens are random with the frequencies of text, factual targets come in spans, rows are packed and end in padding.

The last line is one JSON object with these keys:
  benchmark                 "step"
  lacy_over_ntp             median of the pairwise ratios of step times; target at most 1.05
  share_of_matmul_peak      achieved FLOP/s of the lacy step over the matmul peak
  fused_over_naive_time     median of the pairwise ratios
  fused_over_naive_memory   ratio of peak temporary bytes; target about 1/8
  fused_over_plain_time     fused delegated loss over plain cross-entropy; target at most 1.25
  step_mask_over_micro_batch  median of the pairwise ratios of step times
  lacy_step_s, ntp_step_s, mask_s, matmul_peak_flops, fused_mib, naive_mib   the figures behind the ratios (medians)
  preset, parameters, batch_size, seq_len, repeats, loss_tokens, device
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lacy_jax.config import changed, get_default_config
from lacy_jax.dataset.batch import Batch
from lacy_jax.errors import LacyError
from lacy_jax.models import count_params, flops_per_token, resolve_model_config
from lacy_jax.objectives import delegated_cross_entropy, delegation_mask
from lacy_jax.training import sharding
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.state import ModelDefinition, init_state, state_shardings
from lacy_jax.training.step import make_train_step

VOCABULARY = 32_000
FACTUAL_RATE = 0.25
LOSS_WIDTH = 384


def make_batch(rows: int, length: int, seed: int = 0) -> Batch:
    """A packed batch like one of real text: Zipf frequencies, documents of varied length, factual spans."""
    r = np.random.default_rng(seed)
    ranks = 1.0 / np.arange(1, VOCABULARY + 1)
    stream = r.choice(VOCABULARY, size=(rows, length + 1), p=ranks / ranks.sum()).astype(np.int32)
    # Spans of three tokens on average, starting so often that a quarter of the targets lies inside one.
    starts = r.random((rows, length)) < FACTUAL_RATE / 3
    inside = np.stack([np.roll(starts, shift, axis=1) for shift in range(3)]).any(axis=0)
    segments = 1 + np.cumsum(r.random((rows, length)) < 1 / 200, axis=1, dtype=np.int32)
    padding = np.arange(length) >= length - r.integers(1, length // 10, (rows, 1))
    segments = np.where(padding, 0, segments)
    change = segments[:, 1:] != segments[:, :-1]
    edge = np.ones((rows, 1), bool)
    first, last = np.concatenate([edge, change], axis=1), np.concatenate([change, edge], axis=1)
    begin = np.maximum.accumulate(np.where(first, np.arange(length), 0), axis=1)
    leaves: dict[str, Any] = {
        "tokens": stream[:, :-1],
        "targets": stream[:, 1:],
        "positions": (np.arange(length) - begin).astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "weights": ~padding & ~last,
        "labels": {"factual": inside, "nongrammatical": r.random((rows, length)) < 0.05},
    }
    return Batch(**leaves)


def take_turns(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call of each side, one warm-up call apart; the order reverses every round."""
    for call in sides.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(repeats):
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(sides[name]())
            seconds[name].append(time.perf_counter() - start)
        order.reverse()
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios of calls made in the same round."""
    return statistics.median(a / b for a, b in zip(over, under))


def make_stepper(
    config: ml_collections.ConfigDict,
    model: ModelDefinition,
    policy: str,
    batch: Batch,
    mesh: jax.sharding.Mesh,
) -> Callable[[], Any]:
    """A function that takes one real train step of this policy each time it is called."""
    config = changed(config, {"objective.policy": policy})
    tx = make_optimizer(config, model.axes)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    state = init_state(model, tx, mesh, config.seed)

    def advance() -> Any:
        nonlocal state
        state, metrics = step(state, batch, None)
        return state, metrics

    return advance


def measure_steps(preset: str, rows: int, length: int, repeats: int) -> dict[str, Any]:
    """Comparisons 1 and 2."""
    config = get_default_config()
    config.model.preset, config.input.seq_len, config.input.batch_size = preset, length, rows
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_shape(config, mesh)
    model = ModelDefinition(resolve_model_config(config.model, VOCABULARY, length))
    a = jax.random.normal(jax.random.key(1), (2048, 2048), model.config.dtype)
    multiply = jax.jit(lambda x: x @ a)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(make_batch(rows, length), mesh)
        nll = jax.random.exponential(jax.random.key(2), batch.weights.shape)
        mask = jax.jit(functools.partial(delegation_mask, "lacy", call_rate=0.15))
        seconds = take_turns(
            {
                "ntp": make_stepper(config, model, "ntp", batch, mesh),
                "lacy": make_stepper(config, model, "lacy", batch, mesh),
                "mask": lambda: mask(nll=nll, weights=batch.weights, labels=batch.labels),
                "matmul": lambda: multiply(a),
            },
            repeats,
        )
    peak = 2.0 * a.shape[0] ** 3 / min(seconds["matmul"])
    lacy = statistics.median(seconds["lacy"])
    work = flops_per_token(model.config, length) * rows * length
    return {
        "lacy_over_ntp": ratio(seconds["lacy"], seconds["ntp"]),
        "share_of_matmul_peak": work / lacy / peak,
        "lacy_step_s": lacy,
        "ntp_step_s": statistics.median(seconds["ntp"]),
        "mask_s": statistics.median(seconds["mask"]),
        "matmul_peak_flops": peak,
        "parameters": count_params(model.config),
    }


def measure_mask_scopes(preset: str, rows: int, length: int, repeats: int) -> dict[str, float]:
    """Comparison 4, on one device."""
    config = get_default_config()
    config.model.preset, config.input.seq_len, config.input.batch_size = preset, length, rows
    config.train.accumulation = 4
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    model = ModelDefinition(resolve_model_config(config.model, VOCABULARY, length))
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(make_batch(rows, length), mesh)
        seconds = take_turns(
            {
                scope: make_stepper(
                    changed(config, {"objective.mask_scope": scope}), model, "lacy", batch, mesh
                )
                for scope in ("micro_batch", "step")
            },
            repeats,
        )
    return {"step_mask_over_micro_batch": ratio(seconds["step"], seconds["micro_batch"])}


def plain_cross_entropy(
    hidden: Any, kernel: Any, call_vector: Any, targets: Any, weights: Any, _: Any
) -> Any:
    """Mean nll from materialised logits, without CALL: the least a naive loss can cost."""
    z = jnp.einsum("btd,vd->btv", hidden, kernel)
    z_target = jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    nll = jax.nn.logsumexp(z, axis=-1) - z_target + 0.0 * jnp.sum(call_vector)
    return jnp.sum(nll * weights) / jnp.sum(weights), nll


def measure_loss(tokens: int, repeats: int) -> dict[str, Any]:
    """Comparison 3."""
    rows = 4
    batch = make_batch(rows, tokens // rows, seed=3)
    keys = jax.random.split(jax.random.key(4), 3)
    model = (
        jax.random.normal(keys[0], (*batch.targets.shape, LOSS_WIDTH)),
        jax.random.normal(keys[1], (VOCABULARY, LOSS_WIDTH)) * LOSS_WIDTH**-0.5,
        jax.random.normal(keys[2], (LOSS_WIDTH,)) * LOSS_WIDTH**-0.5,
    )
    rest = jax.device_put((batch.targets, batch.weights, batch.labels))
    delegated = functools.partial(delegated_cross_entropy, policy="lacy", call_rate=0.15)
    losses: dict[str, Callable] = {
        "fused": delegated,
        "naive": functools.partial(delegated, loss="reference"),
        "plain": plain_cross_entropy,
    }
    compiled = {
        name: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        .lower(*model, *rest)
        .compile()
        for name, loss in losses.items()
    }
    seconds = take_turns(
        {name: functools.partial(step, *model, *rest) for name, step in compiled.items()}, repeats
    )
    memory: dict[str, int] = {
        name: getattr(step.memory_analysis(), "temp_size_in_bytes", 0) for name, step in compiled.items()
    }
    return {
        "fused_over_naive_time": ratio(seconds["fused"], seconds["naive"]),
        "fused_over_naive_memory": memory["fused"] / memory["naive"],
        "fused_over_plain_time": ratio(seconds["fused"], seconds["plain"]),
        "fused_mib": memory["fused"] / 2**20,
        "naive_mib": memory["naive"] / 2**20,
        "loss_tokens": tokens,
    }


def run(quick: bool) -> dict[str, Any]:
    """The figures; see the module's docstring. `quick`: a smaller model, shorter rows, fewer repeats."""
    preset, rows, length, repeats = ("10m", 4, 128, 3) if quick else ("30m", 4, 512, 9)
    rows = max(rows, jax.device_count())
    figures: dict[str, Any] = {"benchmark": "step"}
    print("measuring train steps ...", file=sys.stderr)
    figures |= measure_steps(preset, rows, length, repeats)
    figures |= measure_mask_scopes(preset, rows, length, repeats)
    print("measuring the loss ...", file=sys.stderr)
    figures |= measure_loss(1024 if quick else 4096, 3 if quick else 5)
    figures |= {
        "preset": preset,
        "batch_size": rows,
        "seq_len": length,
        "repeats": repeats,
        "device": jax.devices()[0].device_kind,
    }
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()
    }


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: smaller model, fewer repeats")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    args = parser.parse_args()
    try:
        figures = run(args.quick)
    except LacyError as error:
        print(f"benchmarks/step.py: {error}", file=sys.stderr)
        return 2
    if not args.json:
        for name, value in figures.items():
            print(f"{name:>24}  {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A train step: what delegation costs in it, against PyTorch, against the machine, part by part; the fused loss against the naive.

    python benchmarks/step.py [--quick] [--json] [--threads=2] [--family=llama] [--dtype=bfloat16]
                              [--preset=30m --rows=4 --length=512] [--repeats=9] [--only-steps]

Four comparisons, each within one process, the sides taking turns so that a busy machine slows all alike:
  1. the real train step (forward, backward, AdamW) under policy `lacy` against policy `ntp`, same model, same batch; against the
     step of Hugging Face's model of the same shape in PyTorch (on a CPU, where torch and transformers are installed); and
     against the FLOPs of that step by formula over the best large matmul of this machine, by XLA and by PyTorch;
  2. the parts of that step, each by itself, forward and backward: one layer's times the number of layers. What the step
     takes beyond their sum (copies into stacked arrays, gradients set to zero, dispatch) is `rest`, which may be negative;
  3. value and gradients of the loss at V = 32,000, N = 4,096, D = 384: fused, naive (`loss="reference"`), and plain
     cross-entropy by materialised logits. Memory is what XLA reserves for temporaries.
  4. with `train.accumulation` = 4 a step whose mask is taken over the whole step (`objective.mask_scope` = "step", which needs
     a first pass forward) against one with a mask per micro-batch.
Tokens are random with the frequencies of text, factual targets come in spans, rows are packed and end in padding.
PyTorch and XLA run on the same threads, one for each processor that the process may use.

The last line is one JSON object with these keys:
  benchmark                 "step"
  lacy_over_ntp             median of the pairwise ratios of step times; target at most 1.05
  over_pytorch              median of the pairwise ratios, PyTorch's seconds over ours; 1 = as fast, goal at least 1; null = not measured
  over_pytorch_cpu          the same of the processor time of all threads, which other work on the machine disturbs less
  share_of_matmul_peak      achieved FLOP/s of the lacy step over XLA's matmul peak; goal at least 0.7
  pytorch_share_of_matmul_peak   the same of PyTorch's step, over the same peak
  parts_s                   embedding, attention, feed_forward, loss, optimizer, rest
  pytorch_parts_s           layers, loss, optimizer, rest
  fused_over_naive_time     median of the pairwise ratios
  fused_over_naive_memory   ratio of peak temporary bytes; target about 1/8
  fused_over_plain_time     fused delegated loss over plain cross-entropy; target at most 1.25
  step_mask_over_micro_batch  median of the pairwise ratios of step times
  tokens_per_s              of the lacy step
  lacy_step_s, ntp_step_s, pytorch_step_s, mask_s, matmul_peak_flops, pytorch_matmul_peak_flops, fused_mib, naive_mib
                            the figures behind the ratios (medians; peaks: the best)
  family, dtype, preset, parameters, batch_size, seq_len, repeats, loss_tokens, device, processor, threads, versions
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from turns import processor, ratio, rounded, take_turns, threads, use_threads, versions

from lacy_jax.__main__ import restart_with_huge_pages
from lacy_jax.config import changed, get_default_config
from lacy_jax.dataset.batch import Batch
from lacy_jax.errors import LacyError
from lacy_jax.models import ModelConfig, count_params, flops_per_token, resolve_model_config
from lacy_jax.models.attention import attention
from lacy_jax.models.mask import Mask
from lacy_jax.objectives import delegated_cross_entropy, delegation_mask
from lacy_jax.training import sharding
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.state import ModelDefinition, TrainState, init_state, state_shardings
from lacy_jax.training.step import compiler_options, in_two_parts, kept_logits, make_train_step, updated

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


def prepare_step(
    config: ml_collections.ConfigDict, model: ModelDefinition, policy: str, mesh: jax.sharding.Mesh
) -> tuple[Any, TrainState]:
    """The jitted train step of this policy, and a fresh state for it."""
    config = changed(config, {"objective.policy": policy})
    tx, over_data = make_optimizer(config, model.axes), config.train.shard_optimizer
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh, over_data))
    return step, init_state(model, tx, mesh, config.seed, over_data)


def make_stepper(
    config: ml_collections.ConfigDict,
    model: ModelDefinition,
    policy: str,
    batch: Batch,
    mesh: jax.sharding.Mesh,
) -> Callable[[], Any]:
    """A function that takes one real train step of this policy each time it is called."""
    step, state = prepare_step(config, model, policy, mesh)

    def advance() -> Any:
        nonlocal state
        state, metrics = step(state, batch, None)
        return state, metrics

    return advance


def make_parts(
    config: ml_collections.ConfigDict, model: ModelDefinition, batch: Batch, mesh: jax.sharding.Mesh
) -> dict[str, tuple[int, Callable[[], Any]]]:
    """The parts of a step: how often it has each, and a function that runs it once, forward and backward."""
    cfg, tx = model.config, make_optimizer(config, model.axes)
    compiled = functools.partial(jax.jit, compiler_options=compiler_options(config, mesh) or None)
    state = init_state(model, tx, mesh, config.seed)
    network = model.merge(state.params)
    block = jax.tree.map(lambda stacked: stacked[0], network.blocks)
    partition = sharding.ActivationPartition(mesh)
    x = jax.random.normal(jax.random.key(5), (*batch.tokens.shape, cfg.d_model), cfg.dtype)

    def pulled(forward: Callable[..., Any], *primals: Any) -> Callable[[], Any]:
        """Value and gradients of `forward(batch, *primals)`, whose result is shaped like x, for the cotangent x."""

        @compiled  # All is given: what it knew, the compiler would compute ahead.
        def both(batch: Batch, cotangent: Any, *primals: Any) -> Any:
            value, pull = jax.vjp(functools.partial(forward, batch), *primals)
            return value, pull(cotangent)

        return functools.partial(both, batch, x, *primals)

    def embedded(batch: Batch, network: Any) -> Any:
        return network.embed(batch.tokens, batch.positions, partition)

    def attended(batch: Batch, block: Any, x: Any) -> Any:
        q, k, v = block.project(x, batch.positions)
        mask = Mask(batch.segment_ids, cfg.windows[0])
        return block.add_attention(x, attention(q, k, v, mask, cfg.attention, partition))

    def fed_forward(batch: Batch, block: Any, x: Any) -> Any:
        return block.add_feed_forward(x)

    @compiled
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def loss(hidden: Any, kernel: Any, call_vector: Any, batch: Batch) -> Any:
        return delegated_cross_entropy(
            hidden, kernel, call_vector, batch.targets, batch.weights, batch.labels,
            policy="lacy", call_rate=0.15, keep=kept_logits(mesh),
        )  # fmt: skip

    @functools.partial(compiled, donate_argnums=(0, 1))
    def update(params: Any, opt_state: Any, grads: Any) -> Any:
        return updated(tx, params, opt_state, grads, jnp.float32(0), in_two_parts(mesh))[:2]

    grads = jax.tree.map(lambda p: 1e-3 * jnp.ones_like(p), state.params)
    held = jax.tree.map(jnp.copy, (state.params, state.opt_state))

    def optimize() -> Any:
        nonlocal held
        held = update(*held, grads)
        return held

    return {
        "embedding": (1, pulled(embedded, network)),
        "attention": (cfg.n_layers, pulled(attended, block, x)),
        "feed_forward": (cfg.n_layers, pulled(fed_forward, block, x)),
        "loss": (1, functools.partial(loss, x, network.head_kernel(), network.call_vector(), batch)),
        "optimizer": (1, optimize),
    }


def pytorch_sides(model: ModelConfig, batch: Batch) -> dict[str, Callable[[], Any]]:
    """See `pytorch_step.make_sides`; nothing where they cannot run."""
    if jax.default_backend() != "cpu" or not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        print("no comparison with PyTorch: it needs torch, transformers and a CPU", file=sys.stderr)
        return {}
    import pytorch_step

    return pytorch_step.make_sides(model, batch, threads())


def measure_steps(config: ml_collections.ConfigDict, repeats: int) -> dict[str, Any]:
    """Comparisons 1 and 2, of the model and batch of `config`."""
    rows, length = config.input.batch_size, config.input.seq_len
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_shape(config, mesh)
    model = ModelDefinition(resolve_model_config(config.model, VOCABULARY, length))
    a = jax.random.normal(jax.random.key(1), (2048, 2048), model.config.dtype)
    multiply = jax.jit(lambda x: x @ a)
    on_host = make_batch(rows, length)
    beside = pytorch_sides(model.config, on_host)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(on_host, mesh)
        nll = jax.random.exponential(jax.random.key(2), batch.weights.shape)
        mask = jax.jit(functools.partial(delegation_mask, "lacy", call_rate=0.15))
        parts = make_parts(config, model, batch, mesh)
        turns = take_turns(
            {
                "ntp": make_stepper(config, model, "ntp", batch, mesh),
                "lacy": make_stepper(config, model, "lacy", batch, mesh),
                **beside,
                "mask": lambda: mask(nll=nll, weights=batch.weights, labels=batch.labels),
                "matmul": lambda: multiply(a),
                **{name: call for name, (_, call) in parts.items()},
            },
            repeats,
        )
    product = 2.0 * a.shape[0] ** 3
    peak = product / min(turns.wall["matmul"])
    lacy = turns.median("lacy")
    work = flops_per_token(model.config, length) * rows * length
    figures = {
        "lacy_over_ntp": ratio(turns.wall["lacy"], turns.wall["ntp"]),
        "over_pytorch": None,
        "share_of_matmul_peak": work / lacy / peak,
        "tokens_per_s": rows * length / lacy,
        "parts_s": with_rest({name: times * turns.median(name) for name, (times, _) in parts.items()}, lacy),
        "lacy_step_s": lacy,
        "ntp_step_s": turns.median("ntp"),
        "mask_s": turns.median("mask"),
        "matmul_peak_flops": peak,
        "parameters": count_params(model.config),
    }
    if beside:
        step = turns.median("pytorch")
        figures |= {
            "over_pytorch": ratio(turns.wall["pytorch"], turns.wall["lacy"]),
            "over_pytorch_cpu": ratio(turns.cpu["pytorch"], turns.cpu["lacy"]),
            "pytorch_share_of_matmul_peak": work / step / peak,
            "pytorch_parts_s": with_rest(
                {part: turns.median(f"pytorch {part}") for part in ("layers", "loss", "optimizer")}, step
            ),
            "pytorch_step_s": step,
            "pytorch_matmul_peak_flops": product / min(turns.wall["pytorch matmul"]),
        }
    return figures


def with_rest(parts: dict[str, float], whole: float) -> dict[str, float]:
    """Seconds of the parts, and what the whole takes beyond them."""
    return {**parts, "rest": whole - sum(parts.values())}


def measure_mask_scopes(config: ml_collections.ConfigDict, repeats: int) -> dict[str, float]:
    """Comparison 4, on one device."""
    rows, length = config.input.batch_size, config.input.seq_len
    config = changed(config, {"train.accumulation": 4})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    model = ModelDefinition(resolve_model_config(config.model, VOCABULARY, length))
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(make_batch(rows, length), mesh)
        turns = take_turns(
            {
                scope: make_stepper(
                    changed(config, {"objective.mask_scope": scope}), model, "lacy", batch, mesh
                )
                for scope in ("micro_batch", "step")
            },
            repeats,
        )
    return {"step_mask_over_micro_batch": ratio(turns.wall["step"], turns.wall["micro_batch"])}


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
    ).wall
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


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The figures; see the module's docstring. --quick: a smaller model, shorter rows, fewer repeats."""
    preset, length, repeats = ("10m", 128, 3) if options.quick else ("30m", 512, 9)
    if options.threads:
        use_threads(options.threads)
    config = get_default_config()
    config.model.preset, config.model.family = options.preset or preset, options.family
    config.model.dtype = options.dtype
    config.input.seq_len = options.length or length
    config.input.batch_size = max(options.rows, jax.device_count())
    repeats = options.repeats or repeats
    figures: dict[str, Any] = {"benchmark": "step"}
    print("measuring train steps ...", file=sys.stderr)
    figures |= measure_steps(config, repeats)
    if not options.only_steps:
        figures |= measure_mask_scopes(config, repeats)
        print("measuring the loss ...", file=sys.stderr)
        figures |= measure_loss(1024 if options.quick else 4096, 3 if options.quick else 5)
    figures |= {
        "family": config.model.family,
        "dtype": config.model.dtype,
        "preset": config.model.preset,
        "batch_size": config.input.batch_size,
        "seq_len": config.input.seq_len,
        "repeats": repeats,
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "threads": threads(),
        "versions": versions(),
    }
    return rounded(figures)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: smaller model, fewer repeats")
    parser.add_argument("--family", default="gpt2", help="of the model; default gpt2")
    parser.add_argument("--dtype", default="float32", help="compute dtype; default float32")
    parser.add_argument("--preset", default="", help="size of the model; default 30m")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch; default 4")
    parser.add_argument("--length", type=int, default=0, help="tokens of a row; default 512")
    parser.add_argument("--repeats", type=int, default=0, help="rounds; default 9")
    parser.add_argument("--threads", type=int, default=0, help="keep to so many processors; default all")
    parser.add_argument("--only-steps", action="store_true", help="leave out comparisons 3 and 4")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    args = parser.parse_args()
    restart_with_huge_pages()  # As `lacy` does; PyTorch's side has them too.
    try:
        figures = run(args)
    except LacyError as error:
        print(f"benchmarks/step.py: {error}", file=sys.stderr)
        return 2
    if not args.json:
        for name, value in figures.items():
            print(f"{name:>28}  {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

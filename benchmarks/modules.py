"""How a compiled function is given a model: whole, split and merged, or by `nnx.jit`. Why docs/method.md says what it says.

    python benchmarks/modules.py [--quick]

One decoding step of a small model, its KV cache donated, and one training step with AdamW, each written in the ways that Flax
NNX offers. Shown is the median time of a step once compiled, the ways taking turns; the arithmetic is the same, so what
differs is Python: flattening the model, looking the compiled program up, updating the model in place.
The last line is one JSON object with these keys:

  benchmark   "modules"
  decode_us   microseconds of a step: whole (`jax.jit` of the model), split (`nnx.split`, `nnx.merge` inside), nnx (`nnx.jit`)
  train_us    the same: whole (`jax.grad` by the model), dict (by a nested dict, joined inside: `ModelDefinition`), nnx
              (`nnx.jit`, `nnx.value_and_grad`, `nnx.Optimizer`)
  parameters, leaves, device
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lacy_jax.models import ModelConfig, Transformer, count_params, init_cache
from lacy_jax.training.state import ModelDefinition

SMALL = ModelConfig("llama", 512, 128, 8, 4, 4, 32, 384, 64)


def take_turns(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median microseconds of each, after five that are not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 5):
        for name, work in works.items():
            started = time.perf_counter()
            jax.block_until_ready(work())
            if turn >= 5:
                taken[name].append(1e6 * (time.perf_counter() - started))
    return {name: round(statistics.median(values)) for name, values in taken.items()}


def decoding(model: Transformer, repeats: int) -> dict[str, float]:
    """One token of one text."""
    graph, state = nnx.split(model)
    token = jnp.zeros((1, 1), jnp.int32)
    caches = {name: init_cache(model.cfg, 1, 64) for name in ("whole", "split", "nnx")}
    whole = jax.jit(lambda model, cache: model.decode(token, token, cache)[1], donate_argnums=1)
    split = jax.jit(
        lambda graph, state, cache: nnx.merge(graph, state).decode(token, token, cache)[1],
        static_argnums=0,
        donate_argnums=2,
    )
    nnx_jit = nnx.jit(lambda model, cache: model.decode(token, token, cache)[1], donate_argnums=1)

    def step(name: str, function: Callable[..., Any], *given: Any) -> Callable[[], Any]:
        def run() -> Any:
            caches[name] = function(*given, caches[name])
            return caches[name]

        return run

    works = {
        "whole": step("whole", whole, model),
        "split": step("split", split, graph, state),
        "nnx": step("nnx", nnx_jit, model),
    }
    return take_turns(works, repeats)


def training(cfg: ModelConfig, repeats: int) -> dict[str, float]:
    """One step on two rows of 32 tokens."""
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.integers(0, cfg.vocab_size, (2, 32)), jnp.int32)
    positions, ones = jnp.broadcast_to(jnp.arange(32), (2, 32)), jnp.ones((2, 32), jnp.int32)
    tx = optax.adamw(1e-3)

    def loss(model: Transformer) -> jax.Array:
        z, _ = model.logits(model(tokens, positions, ones))
        return optax.softmax_cross_entropy_with_integer_labels(z[:, :-1], tokens[:, 1:]).mean()

    definition = ModelDefinition(cfg)
    held: dict[str, Any] = {}
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    held["whole"] = (model, tx.init(model))
    params = definition.init(jax.random.key(0))
    held["dict"] = (params, tx.init(params))
    theirs = Transformer(cfg, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(theirs, tx, wrt=nnx.Param)

    def update(of: Callable[[Any], jax.Array]) -> Callable[..., Any]:
        def step(params: Any, state: Any) -> Any:
            updates, state = tx.update(jax.grad(of)(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(step, donate_argnums=(0, 1))

    whole, joined = update(loss), update(lambda params: loss(definition.merge(params)))

    @nnx.jit
    def nnx_step(model: Transformer, optimizer: nnx.Optimizer) -> jax.Array:
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    def step(name: str, function: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            held[name] = function(*held[name])
            return held[name]

        return run

    works = {
        "whole": step("whole", whole),
        "dict": step("dict", joined),
        "nnx": lambda: nnx_step(theirs, optimizer),
    }
    return take_turns(works, repeats)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few repeats")
    repeats = 3 if parser.parse_args().quick else 200
    model = Transformer(SMALL, rngs=nnx.Rngs(0)).for_decoding()
    figures = {
        "benchmark": "modules",
        "decode_us": decoding(model, repeats),
        "train_us": training(SMALL, repeats),
        "parameters": count_params(SMALL),
        "leaves": len(jax.tree.leaves(model)),
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

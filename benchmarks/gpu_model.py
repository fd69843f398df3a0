"""Pieces of benchmarks/gpu.py: the card's ceilings, the train step and its parts, decoding; and how a piece is timed."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from step import VOCABULARY, make_batch, make_parts, make_stepper, prepare_step
from turns import ratio, take_turns

from lacy_jax.cascade import Prompt, generate
from lacy_jax.config import changed, get_default_config, load_config
from lacy_jax.corpus import World
from lacy_jax.models import ModelConfig, Transformer, count_params, flops_per_token, resolve_model_config
from lacy_jax.tokenizer import Tokenizer, train_tokenizer
from lacy_jax.training import sharding
from lacy_jax.training.state import ModelDefinition

EXPERIMENT = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "paper_334m.py"


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the pieces are.

    Attributes:
      preset, length: of the model and its rows. rows: as the settings say, but no more than this.
      tokens: of the loss, in rows of `length`. matmul, copy_mib: of the ceilings. new_tokens: of a written text.
      seconds: timed per piece, about.
    """

    preset: str
    length: int
    rows: int
    tokens: int
    matmul: int
    copy_mib: int
    new_tokens: int
    seconds: float


FULL = Size("334m", 1024, 64, 16_384, 8192, 2048, 512, 1.0)
TINY = Size("tiny", 64, 2, 128, 128, 1, 8, 0.0)


def seconds_per_call(size: Size, call: Callable[..., Any], *given: Any) -> float:
    """Median of five rounds of calls that are queued without waiting for each other; two calls go before them."""
    jax.block_until_ready(call(*given))
    start = time.perf_counter()
    jax.block_until_ready(call(*given))
    count = int(min(max(size.seconds / 5 / (time.perf_counter() - start), 1), 100))
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            out = call(*given)
        jax.block_until_ready(out)
        rounds.append((time.perf_counter() - start) / count)
    return statistics.median(rounds)


def compiled(function: Callable[..., Any], *given: Any, options: dict[str, Any] | None = None) -> Any:
    """`function` compiled for these arguments."""
    return jax.jit(function).lower(*given).compile(compiler_options=options)


def temporary_bytes(program: Any) -> int:
    """What XLA reserves for temporaries."""
    return getattr(program.memory_analysis(), "temp_size_in_bytes", 0)


# -- ceilings ----------------------------------------------------------------------------------------------------------


def measure_matmul(size: Size) -> dict[str, Any]:
    """A large bfloat16 product."""
    return _product(size, size.matmul, size.matmul, size.matmul)


def _product(size: Size, rows: int, width: int, out: int) -> dict[str, Any]:
    """Of random numbers: zeros would take less power and run faster."""
    a, b = (
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
        for i, shape in enumerate([(rows, width), (width, out)])
    )
    return {
        "call_s": seconds_per_call(size, compiled(jnp.matmul, a, b), a, b),
        "flops": 2.0 * rows * width * out,
    }


def measure_copy(size: Size) -> dict[str, Any]:
    """A device copy, by a kernel that reads and writes each byte once."""
    x = jnp.ones((size.copy_mib << 20) // 4, jnp.float32)
    return {"call_s": seconds_per_call(size, compiled(jnp.negative, x), x), "bytes": 2 * x.nbytes}


def measure_shapes(size: Size) -> dict[str, Any]:
    """The products of a step's forward pass, each alone: the rates that its matmuls could have."""
    cfg = dimensions(size)
    d, f = cfg.d_model, cfg.d_ff
    shapes = {"square": (d, d), "up": (d, f), "down": (f, d), "head": (d, VOCABULARY)}
    return {name: _product(size, size.tokens, *shape) for name, shape in shapes.items()}


# -- train step --------------------------------------------------------------------------------------------------------


def _config(size: Size, style: str, rows: int, **fields: Any) -> ml_collections.ConfigDict:
    """The paper's config of a style, "llama" or "bf16" (GPT-2), at this size; fields have "__" for a dot."""
    chosen = {name.replace("__", "."): value for name, value in fields.items()}
    given = {
        "model.preset": size.preset,
        "input.seq_len": size.length,
        "input.batch_size": min(rows, size.rows),
    }
    return changed(load_config(f"{EXPERIMENT}:{style}"), given | chosen)


def _model(config: ml_collections.ConfigDict, size: Size) -> ModelDefinition:
    return ModelDefinition(resolve_model_config(config.model, VOCABULARY, size.length))


def dimensions(size: Size) -> ModelConfig:
    """Of the Llama style."""
    return _model(_config(size, "llama", 16), size).config


def _mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    return sharding.make_mesh(config.mesh, jax.devices()[:1])


def measure_step(
    size: Size, style: str, rows: int, options: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """A train step of policy `lacy` with these fields of the config, and these options of XLA."""
    config = _config(size, style, rows, **fields)
    mesh, model = _mesh(config), _model(config, size)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(make_batch(config.input.batch_size, size.length), mesh)
        step, state = prepare_step(config, model, "lacy", mesh)
        start = time.perf_counter()
        program = step.lower(state, batch, None).compile(compiler_options=options)
        compile_s = time.perf_counter() - start

        def advance() -> Any:
            nonlocal state
            state, metrics = program(state, batch, None)
            return metrics

        step_s = seconds_per_call(size, advance)
        nll = float(advance().loss.nll_all)
    tokens = config.input.batch_size * size.length
    return {
        "step_s": step_s, "compile_s": compile_s, "tokens": tokens, "nll": nll,
        "flops": flops_per_token(model.config, size.length) * tokens, "parameters": count_params(model.config),
        "temporary_bytes": temporary_bytes(program),
    }  # fmt: skip


def measure_policies(size: Size) -> dict[str, Any]:
    """Steps under `lacy` and `ntp` in turns."""
    config = _config(size, "llama", 16)
    mesh, model = _mesh(config), _model(config, size)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(make_batch(config.input.batch_size, size.length), mesh)
        sides = {policy: make_stepper(config, model, policy, batch, mesh) for policy in ("ntp", "lacy")}
        wall = take_turns(sides, 9 if size.seconds else 1).wall
    return {"lacy_over_ntp": ratio(wall["lacy"], wall["ntp"]), "step_s": wall}


def measure_parts(size: Size) -> dict[str, Any]:
    """The parts of a step alone, forward and backward, and how often it has each."""
    config = _config(size, "llama", 16, model__remat="none")
    mesh, model = _mesh(config), _model(config, size)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(make_batch(config.input.batch_size, size.length), mesh)
        parts = make_parts(config, model, batch, mesh)
        return {
            name: {"times": times, "call_s": seconds_per_call(size, call)}
            for name, (times, call) in parts.items()
        }


# -- decoding ----------------------------------------------------------------------------------------------------------


def _made_up_tokenizer(world: World) -> Tokenizer:
    """One of `VOCABULARY` pieces, most of which occur in no text: the head must be as wide as the real one's."""
    from sentencepiece import sentencepiece_model_pb2

    config = get_default_config()
    config.tokenizer.vocab_size = 500
    small = train_tokenizer((world.text(i).text for i in range(200)), config.tokenizer)
    proto = sentencepiece_model_pb2.ModelProto.FromString(small)  # type: ignore[attr-defined]
    for i in range(VOCABULARY - len(proto.pieces)):
        proto.pieces.add(piece=f"\u2581unused{i}", score=-100.0)
    return Tokenizer.from_bytes(proto.SerializeToString())


def measure_decode(size: Size, rows: int) -> dict[str, Any]:
    """`rows` texts side by side, greedy, without a partner; a Llama of random weights."""
    world = World(people=200, seed=0)
    tokenizer = _made_up_tokenizer(world)
    config = _config(size, "llama", 16)
    cfg: ModelConfig = resolve_model_config(config.model, VOCABULARY, size.length)
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    prompts = [Prompt(world.prompt(i), str(i)) for i in range(rows)]

    def write() -> int:
        texts = generate(
            model, tokenizer, prompts, gate="entropy", max_new_tokens=size.new_tokens, batch_size=rows,
            progress=False,
        )  # fmt: skip
        return sum(len(text.tokens) for text in texts)

    write()
    rounds = []
    for _ in range(3 if size.seconds else 1):
        start = time.perf_counter()
        written = write()
        rounds.append(time.perf_counter() - start)
    weights = count_params(cfg) * jnp.dtype(cfg.dtype).itemsize
    return {"call_s": statistics.median(rounds), "written": written, "rows": rows, "weight_bytes": weights}
